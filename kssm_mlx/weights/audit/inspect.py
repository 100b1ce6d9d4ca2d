"""The layers L0 to L3 over a container, in one pass over the tensors, one tensor in memory at a time.

    L0 container   the files add up        L2 digests   the bits are those of a manifest or the hub
    L1 names       they are this model's   L3 values    no training gives such numbers

A layer that fails ends the inspection: what comes after it would speak of something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from kssm_mlx.digest import file_digest, root_digest, stored_digest
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import LanguageModel, flatten
from kssm_mlx.models.families.config_keys import CODE, EVERYWHERE, UNUSED
from kssm_mlx.weights.audit.findings import LAYERS, Finding, failures, list_some
from kssm_mlx.weights.audit.manifest import Manifest, TensorFacts, compare
from kssm_mlx.weights.audit.tensor_stats import Summary, summarise
from kssm_mlx.weights.audit.value_checks import Weights, is_embedding, is_small, is_weight, judge
from kssm_mlx.weights.io.container import Container, open_container
from kssm_mlx.weights.io.tensors import TensorInfo
from kssm_mlx.weights.naming.name_map import NameMap, configuration, map_names, skeleton

Keep = Callable[[str, TensorInfo, np.ndarray], None]


class Meter(Protocol):
    """Hears how far an inspection is; rich's progress bar behind two methods, or nothing."""

    def start(self, total: int) -> None: ...

    def advance(self, n: int) -> None: ...


class Silent:
    """The meter of those who do not watch."""

    def start(self, total: int) -> None:
        pass

    def advance(self, n: int) -> None:
        pass


@dataclass
class Inspection:
    """What was found out about some weights.

    container: the files. config, model, names: what they are to be, the model without its numbers. digests
    and summaries: by name in the files. findings: everything that is wrong or odd. ran: ids of the checks
    that had what they need.
    """

    container: Container
    config: Any = None
    model: LanguageModel | None = None
    names: NameMap = field(default_factory=lambda: NameMap({}, {}, ()))
    digests: dict[str, str] = field(default_factory=dict)
    summaries: dict[str, Summary] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    @property
    def root(self) -> str | None:
        """One digest of all tensors; None before L2."""
        return root_digest(self.digests) if self.digests else None

    @property
    def ok(self) -> bool:
        return not failures(self.findings)

    def manifest(self) -> Manifest:
        """The digests as a manifest to be written."""
        tensors = {
            name: TensorFacts(dtype=t.dtype, shape=t.shape, sha256=self.digests[name])
            for name, t in self.container.tensors.items()
        }
        return Manifest(root=self.root, tensors=tensors)


def inspect(
    path: str | Path,
    *,
    expected: Mapping[str, str] | None = None,
    promised: Mapping[str, str] | None = None,
    meter: Meter | None = None,
    keep: Keep | None = None,
    go_on: bool = False,
    headers_only: bool = False,
) -> Inspection:
    """Run L0 to L3 over the weights at `path`.

    expected: name -> digest of a manifest. promised: file name -> sha256 of the hub. meter: hears how many
    bytes there will be, and each time how many more were read. keep: called with each tensor while it is in
    memory. go_on: past a failed layer, as far as that is possible. headers_only: L0 and L1 alone, which read
    no tensor.
    Raises: ConfigError for a path without weights.
    """
    # Layer by layer: what a lower one finds wrong makes the findings of a higher one noise.
    found, meter = Inspection(open_container(path)), meter or Silent()
    promised = promised or {}
    meter.start(0 if headers_only else work(found.container, promised))
    _container(found, meter)
    if found.ok:
        _names(found)
    if headers_only:
        return found
    if found.ok or (go_on and found.model is not None):
        _summarize_tensors(found, meter, keep)
        _check_digests(found, expected or found.container.digests, promised, meter)
    if found.ok or (go_on and found.model is not None):
        _judge_values(found)
    return found


def work(container: Container, promised: Mapping[str, str]) -> int:
    """Bytes that an inspection reads."""
    whole = [f for f in container.files if f.suffix != ".safetensors" or f.name in promised]
    return container.nbytes + sum(f.stat().st_size for f in whole)


def _container(found: Inspection, meter: Meter) -> None:
    """L0. A run's W3 and W4 have nothing to look at, nor has W5 in safetensors."""
    torch = any(f.suffix != ".safetensors" for f in found.container.files)
    found.ran += [id for id in LAYERS["L0"] if torch or id not in ("W4", "W5")]
    found.findings += found.container.findings
    if found.ok and torch:
        found.findings += found.container.check_archives(meter.advance)


def _names(found: Inspection) -> None:
    """L1, but for the tied head, which needs digests."""
    found.ran.append("W6")
    try:
        found.config = configuration(found.container)
        found.model = skeleton(found.config, found.container)
    except ConfigError as e:
        fix = "take config.json from the source of the weights"
        found.findings.append(Finding("W6", str(e), fix))
        return
    found.findings += _unread_keys(found.config)
    found.ran += ["W7", "W8", "W9"]
    found.names = map_names(found.container, found.config, found.model)
    found.findings += found.names.findings


def _unread_keys(config: Any) -> list[Finding]:
    """W6 of a model of mlx-lm, whose code drops the keys that it does not know."""
    known = {*EVERYWHERE, *UNUSED, *CODE}
    unread = [key for key in getattr(config, "unread", ()) if key not in known]
    fix = "harmless where they say how the model was trained; compare logits where they change the model"
    architecture = getattr(config, "architecture", "")
    text = f"config.json has {list_some(unread)}, which mlx-lm's {architecture} does not read"
    return [Finding("W6", text, fix, warning=True)] if unread else []


def _summarize_tensors(found: Inspection, meter: Meter, keep: Keep | None) -> None:
    """The digest and the summary of every tensor, which L2 and L3 look at, side by side on two cores."""
    ours = {source: name for name, (source, _) in found.names.pairs.items()}
    fresh = flatten(found.model.parameters()) if found.model is not None else {}
    with ThreadPoolExecutor(1) as pool:
        # In the order of the disk, each read once for both.
        for name, info in sorted(found.container.tensors.items(), key=lambda i: (i[1].file, i[1].offset)):
            stored = info.map()
            digest = pool.submit(_digest_stored, info, stored)
            summary = summarise(info, stored, embedding=is_embedding(ours.get(name, "")))
            found.digests[name] = digest.result()
            if name in ours and not is_weight(ours[name], summary) and is_small(info.size):
                same = _initial_digest(info, fresh[ours[name]]) == found.digests[name]
                summary = replace(summary, fresh=same)
            found.summaries[name] = summary
            if keep:
                keep(name, info, stored)
            meter.advance(info.nbytes)


def _check_digests(
    found: Inspection, expected: Mapping[str, str], promised: Mapping[str, str], meter: Meter
) -> None:
    """L2, and of L1 the tied head."""
    if found.names.unread:
        found.ran.append("W10")
        found.findings += _check_tied_head(found)
    if expected:
        found.ran.append("W11")
        found.findings += compare(found.digests, expected)
    for file in (f for f in found.container.files if f.name in promised):
        got = file_digest(file)
        meter.advance(file.stat().st_size)
        if got != promised[file.name]:
            text = f"{file.name} has sha256 {got[:12]}, the hub promises {promised[file.name][:12]}"
            found.findings.append(Finding("W12", text, "delete it from the cache and download it again"))
    if promised:
        found.ran.append("W12")


def _check_tied_head(found: Inspection) -> list[Finding]:
    """W10: a head beside an embedding that it is tied to has the same bytes."""
    source = {ours: name for ours, (name, _) in found.names.pairs.items()}
    fix = "set tie_word_embeddings to false if the head is trained of its own"
    return [
        Finding("W10", f"{head} is not {source[embedding]}, and the configuration ties them", fix)
        for head, embedding in found.names.unread.items()
        if embedding and found.digests[head] != found.digests[source[embedding]]
    ]


def _judge_values(found: Inspection) -> None:
    """L3."""
    found.ran += LAYERS["L3"]
    ours = {source: name for name, (source, _) in found.names.pairs.items()}
    taken = {name: s for name, s in found.summaries.items() if name in ours}
    found.findings += judge(Weights(taken, found.digests, ours, run=found.container.layout == "run"))


def _digest_stored(info: TensorInfo, stored: np.ndarray) -> str:
    flat = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
    return stored_digest(info.dtype, info.shape, flat)


def _initial_digest(info: TensorInfo, fresh: mx.array) -> str:
    """The digest of a parameter's initial value, stored as `info` says."""
    value = fresh.astype(getattr(mx, info.dtype))
    raw = np.array(value.view(mx.uint16) if info.dtype == "bfloat16" else value)
    return stored_digest(info.dtype, info.shape, raw.tobytes())
