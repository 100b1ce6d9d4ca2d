"""What can be wrong with weights on disk: the checks by id, in the four layers that need no arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from kssm_mlx.errors import WeightMismatch


class Rule(NamedTuple):
    """A check: what it is about, and what a good file shows."""

    title: str
    expected: str


CHECKS: dict[str, Rule] = {
    "W1": Rule("container header", "a header that is whole, with every name once and known dtypes"),
    "W2": Rule("tensor extents", "tensors that fill the file without gap, overlap or anything left over"),
    "W3": Rule("index and shards", "an index and shards that name the same tensors in the same files"),
    "W4": Rule("pickle safety", "a pickle of tensors and nothing else"),
    "W5": Rule("archive checksums", "the CRC-32 that the archive states for each of its entries"),
    "W6": Rule("configuration", "a configuration this architecture understands"),
    "W7": Rule("names", "every parameter from exactly one tensor, and no tensor left over"),
    "W8": Rule("shapes", "the shapes of the configuration"),
    "W9": Rule("dtypes", "float32, float16 or bfloat16, the same for a kind of tensor in all blocks"),
    "W10": Rule("tied head", "a head equal to the embedding where the configuration ties them"),
    "W11": Rule("digests", "the tensors of the manifest, bit for bit"),
    "W12": Rule("hub digests", "the sha256 that the hub promises for each file"),
    "W13": Rule("finite values", "no NaN and no infinity"),
    "W14": Rule("zero or constant tensors", "tensors with more than one value in them"),
    "W15": Rule("duplicated tensors", "no two weights with the same bytes"),
    "W16": Rule("dead or scaled layers", "weights of the size of their kind in the other blocks"),
    "W17": Rule("dynamics in range", "decays that forget something, and not everything"),
    "W18": Rule("embedding rows", "rows of a size with the others"),
    "W19": Rule(
        "fresh or random weights", "matrices with structure, vectors that moved since initialisation"
    ),
}
LAYERS: dict[str, tuple[str, ...]] = {
    "L0": ("W1", "W2", "W3", "W4", "W5"),
    "L1": ("W6", "W7", "W8", "W9", "W10"),
    "L2": ("W11", "W12"),
    "L3": ("W13", "W14", "W15", "W16", "W17", "W18", "W19"),
}
NEW_COPY = "get the file again, and compare its sha256 with the source's"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `warning` marks what is only suspicious."""

    check: str
    got: str
    fix: str = NEW_COPY
    warning: bool = False

    def __str__(self) -> str:
        rule = CHECKS[self.check]
        return f"{self.check} {rule.title}: {self.got}; expected {rule.expected}. Fix: {self.fix}"


def failures(findings: Iterable[Finding]) -> list[Finding]:
    return [f for f in findings if not f.warning]


def require(findings: Iterable[Finding], source: object) -> None:
    """Raises: WeightMismatch that names the failed checks, the first three in full."""
    failed = failures(findings)
    if failed:
        more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
        raise WeightMismatch(f"{source}: {' | '.join(map(str, failed[:3]))}{more}")


def some(names: Iterable[object], limit: int = 3) -> str:
    """The first few of many names: "a, b, c and 4 more"."""
    names = [str(n) for n in names]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
