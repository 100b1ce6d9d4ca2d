"""All of `kssm verify-weights`: the files, the numbers in them, and the model they make, in one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Check
from kssm_mlx.checks.pretrained.arithmetic import fingerprint_of, judge_vocabulary
from kssm_mlx.checks.pretrained.behaviour import measure_behaviour
from kssm_mlx.checks.pretrained.subject import Subject
from kssm_mlx.errors import CheckFailed
from kssm_mlx.runner.pretrained import find_manifest as known_of
from kssm_mlx.runner.pretrained import tokenizer_of
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.audit.inspect import Inspection, Meter, inspect
from kssm_mlx.weights.audit.manifest import Manifest, read_manifest, write_manifest
from kssm_mlx.weights.hub.headers import Outline, outline
from kssm_mlx.weights.hub.resolve import Resolved, resolve
from kssm_mlx.weights.loader import Arrays, fill
from kssm_mlx.weights.side_files import ends_by_file


@dataclass(frozen=True)
class Verification:
    """checks: the verdicts, in order. inspection: what L0 to L3 saw, with the model if L4 and L5 ran."""

    checks: list[Check]
    inspection: Inspection
    source: Resolved

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.checks)

    @property
    def speaks(self) -> bool:
        """Whether the model was seen to read its text better than counting does."""
        return any(c.id == "W24" and c.verdict == "pass" for c in self.checks)


def verify_weights(
    source: str | Path,
    *,
    quick: bool = False,
    manifest: str | Path | None = None,
    text: str | None = None,
    meter: Meter | None = None,
) -> Verification:
    """Every check W1 to W27 of weights, or with `quick` those of L0 to L3, which read the files only.

    manifest: a file to compare with, by default the one shipped for the repository. text: what L5 reads.
    Raises: ConfigError for what is no model, or cannot be had.
    """
    resolved = resolve(source)
    known = read_manifest(manifest) if manifest else known_of(resolved)
    arrays = Arrays()
    found = inspect(
        resolved.path,
        expected=known.digests,
        promised=resolved.sha256,
        meter=meter,
        keep=None if quick else arrays.keep,
    )
    checks = [check for level in ("L0", "L1", "L2", "L3") for check in suite.run_level(level, found)]
    # Nothing is computed with weights that the files alone have condemned.
    if found.ok and not quick:
        fill(found, arrays)
        subject = make_subject(found, known, text)
        checks += [*suite.run_level("L4", subject), *suite.run_level("L5", subject)]
    done = Verification(checks, found, resolved)
    if done.ok:
        # Without a text it could read, the model was not seen to speak: training on it is refused.
        verified.remember(found, "L5" if done.speaks else "L3")
    return done


class Headers(NamedTuple):
    """What weights say of themselves at their beginning. memory: bytes of all tensors as they are stored;
    ends: file -> the ids that it calls the end of a text.
    """

    verification: Verification
    outline: Outline
    memory: int
    ends: dict[str, list[int]]

    @property
    def ends_agree(self) -> bool:
        """Whether all files that name an end have one in common."""
        return not self.ends or bool(set.intersection(*map(set, self.ends.values())))


def verify_headers(source: str | Path) -> Headers:
    """W1 to W9 of weights by their headers, and W20 of the tokenizer beside them: of a repository by some
    requests, without its tensors.

    Raises: ConfigError for what is no model, or cannot be had, or does not begin with a header.
    """
    with outline(source) as found:
        seen = inspect(found.path, headers_only=True)
        checks = [check for level in ("L0", "L1") for check in suite.run_level(level, seen)]
        ends: dict[str, list[int]] = {}
        if seen.config is not None:
            tokenizer = tokenizer_of(seen.container, seen.config.vocab_size, Manifest())
            if tokenizer is not None:
                checks.append(judge_vocabulary(tokenizer, seen.config.vocab_size))
                ends = ends_by_file(seen.container.folder, tokenizer.id_of)
        done = Verification(checks, seen, Resolved(found.path, found.repo, found.revision))
        return Headers(done, found, seen.container.nbytes, ends)


def make_subject(found: Inspection, known: Manifest, text: str | None = None) -> Subject:
    """What L4 and L5 look at: the model of an inspection, its tokenizer, what its manifest says of it."""
    return Subject(
        model=found.model,
        config=found.config,
        tokenizer=tokenizer_of(found.container, found.config.vocab_size, known),
        text=text,
        domain=known.domain,
        facts=known.model,
        fingerprint=known.fingerprint,
        behaviour=known.behaviour,
        published=known.published,
    )


def record_manifest(verification: Verification, path: str | Path, *, text: str | None = None) -> Manifest:
    """Write the manifest of weights that passed: digests, and where L4 and L5 ran what they measured.

    Raises: CheckFailed if a check failed; ConfigError if the file cannot be written.
    """
    if not verification.ok:
        failed = ", ".join(c.id for c in verification.checks if not c.ok)
        raise CheckFailed(f"no manifest of weights that failed {failed}; repair them first")
    found, source = verification.inspection, verification.source
    known = known_of(source)
    values: dict[str, Any] = {"repo": source.repo, "revision": source.revision}
    values |= {name: getattr(known, name) for name in ("model", "tokenizer", "published", "domain")}
    if any(c.level == "L4" for c in verification.checks):
        values["fingerprint"] = fingerprint_of(found.model)
        if verification.speaks:
            values["behaviour"] = measure_behaviour(make_subject(found, known, text))
    made = found.manifest().model_copy(update=values)
    write_manifest(path, made)
    return made
