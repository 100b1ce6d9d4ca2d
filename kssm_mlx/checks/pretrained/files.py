"""Are the files on disk the weights of a model? The checks of layers L0 to L3 as verdicts.

What is wrong is found in kssm_mlx/weights (findings.py lists the checks W1 to W19); here each becomes one
line with what was got, what was expected and what to do. L4 and L5 are in pretrained.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kssm_mlx.checks.core.registry import START, Check, check, verdict
from kssm_mlx.weights.audit.findings import CHECKS, LAYERS, Finding, Rule
from kssm_mlx.weights.audit.inspect import Inspection

LAYERS_PAGE = "docs/background/weights.md#six-layers"
NEVER_LOADED = "docs/background/phase-grafts.md#weights-that-were-never-loaded"
SOURCES = {"W7": NEVER_LOADED, "W19": NEVER_LOADED}

# Why a check had nothing to look at, where the reason is not that an earlier layer failed.
ABSENT = {
    "W4": "no pickle: these are safetensors",
    "W5": "safetensors have no checksums of their own",
    "W10": "no second copy of the embedding",
    "W11": "no manifest; --manifest FILE compares with one, --write-manifest FILE makes one",
    "W12": "not from the hub's cache",
}


@check(
    "W0",
    level=START,
    title="verified base model",
    source="docs/background/weights.md#why-weights-are-verified",
)
def base_model_verdict(digest: str, notes: dict[str, Any]) -> Check:
    """Whether the weights that a run starts from passed `kssm verify-weights`, for its checks.json.

    Threshold: W1 to W28 passed for exactly this root digest, and no file was touched since.
    Caught: Phase-Mamba Attempt 2, trained for 72 minutes on random weights because its loader was a stub.
    Sabotage: a base model that was never verified; one exchanged after its verification.
    """
    findings = notes.get("findings", ())
    ok = notes.get("verified") == "L5"
    got = f"passed {notes.get('verified')}" if ok else "not verified" + "".join(f"; {f}" for f in findings)
    waived = {} if ok else {"waived_because": "--no-verify"}
    numbers = {"root": digest, "revision": notes.get("revision"), **waived}
    word = "pass" if ok else "waived"
    return verdict("W0", word, got, "L5 passed, by this root digest", "", **numbers)


def _register(id: str, rule: Rule) -> None:
    """A check whose finding is made in weights/audit, where the files are read once for all of them."""

    def judge(found: Inspection) -> Check:
        return _judge(id, rule, found)

    judge.__doc__ = rule.explanation
    check(id, level=rule.layer, title=rule.title, source=SOURCES.get(id, LAYERS_PAGE))(judge)


for _id, _rule in CHECKS.items():
    _register(_id, _rule)


def _judge(id: str, rule: Rule, found: Inspection) -> Check:
    own = [f for f in found.findings if f.check == id]
    reached = next((layer for layer in ("L3", "L2", "L1") if set(LAYERS[layer]) & set(found.ran)), "L0")
    if id not in found.ran and not own:
        early = found.ok is False and (rule.layer > reached or id in ("W7", "W8", "W9", "W10"))
        got = (
            f"{_list_failed(found.findings)} failed first" if early else ABSENT.get(id, "nothing to look at")
        )
        return verdict(id, "not measurable", got, rule.expected)
    word = "pass" if not own else "warn" if all(f.warning for f in own) else "fail"
    got = "; ".join(f.got for f in own) or _describe_good(id, found)
    fix = " ".join(dict.fromkeys(f.fix for f in own))
    return verdict(id, word, got, rule.expected, fix)


def _list_failed(findings: Iterable[Finding]) -> str:
    return ", ".join(dict.fromkeys(f.check for f in findings if not f.warning))


def _describe_good(id: str, found: Inspection) -> str:
    """What a check that passed has seen, in numbers."""
    c = found.container
    n, files = len(c.tensors), len(c.files)
    seen = {
        "W1": f"{n:,} tensors in {files} file{'s' * (files > 1)}",
        "W2": f"{c.nbytes / 1e6:,.1f} MB, all accounted for",
        "W3": f"{files} file{'s' * (files > 1)}, layout {c.layout}",
        "W4": "tensors only",
        "W5": "every entry as stated",
        "W6": getattr(found.config, "model_type", ""),
        "W7": f"{len(found.names.pairs):,} parameters from as many tensors" if found.names else "",
        "W8": "all as configured",
        "W9": ", ".join(sorted({t.dtype for t in c.tensors.values()})),
        "W10": "the same bytes",
        "W11": f"{len(found.digests):,} digests, root {(found.root or '')[:12]}",
        "W12": f"{files} file{'s' * (files > 1)} as promised",
    }
    return seen.get(id, f"{len(found.summaries):,} tensors")
