"""What can be wrong with weights on disk: the checks by id, in the four layers that need no arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from kssm_mlx.errors import WeightMismatch, one_line


class Rule(NamedTuple):
    """A check: its layer, what it is about, what a good file shows; why it is there, as the docstrings of the
    other checks say it. Its sabotage is a kind of damage in tests/faults, done to every architecture.
    """

    layer: str
    title: str
    expected: str
    explanation: str


CHECKS: dict[str, Rule] = {
    "W1": Rule(
        "L0",
        "container header",
        "a header that is whole, with every name once and known dtypes",
        """The header of every safetensors file, read without trusting it: its length, its JSON, every name
            once, known dtypes, shapes and offsets that are numbers and belong together; the entries of a
            torch zip.
            Threshold: exact; a header may have 25 MB.
            Caught: an error page of a web server saved under the name of the weights.
            Sabotage: a bit flipped in the header; a length of 2^64 - 1; a name twice; an unknown dtype.""",
    ),
    "W2": Rule(
        "L0",
        "tensor extents",
        "tensors that fill the file without gap, overlap or anything left over",
        """The bytes that the header gives each tensor, in the order of their offsets, against the file.
            Threshold: exact: no gap, no overlap, nothing missing, nothing after the last tensor.
            Caught: a download that stopped, whose missing tail a memory map only notices when it is read.
            Sabotage: a file cut at every boundary between tensors; one byte short; one byte too many; an
            overlap.""",
    ),
    "W3": Rule(
        "L0",
        "index and shards",
        "an index and shards that name the same tensors in the same files",
        """The index of sharded weights against its shards, in both directions: files, names, and which file
            has which name.
            Threshold: exact.
            Caught: a folder with shards of two downloads, of which a glob takes all and an index half.
            Sabotage: a missing, a stray and an exchanged shard; a name in two shards; an index that points
            outside.""",
    ),
    "W4": Rule(
        "L0",
        "pickle safety",
        "a pickle of tensors and nothing else",
        """The pickle of a torch file, opcode by opcode, without executing it: opcodes and globals that
            tensors need are allowed, anything else is refused by name.
            Threshold: a fixed list; nothing of the file is ever called.
            Caught: code in a weight file, which torch.load of old runs.
            Sabotage: nine hostile pickles: a shell command, eval, a name from the stack, EXT1, NEWOBJ and
            others.""",
    ),
    "W5": Rule(
        "L0",
        "archive checksums",
        "the CRC-32 that the archive states for each of its entries",
        """The CRC-32 of each entry of a torch zip against the bytes.
            Threshold: equal.
            Caught: a flipped bit in a .pth file, even without a manifest; safetensors have no such sum.
            Sabotage: one bit flipped in a tensor's data.""",
    ),
    "W6": Rule(
        "L1",
        "configuration",
        "a configuration this architecture understands",
        """config.json, or for BlinkDL's files the sizes inferred from the tensors, read as a configuration
            of the architecture.
            Threshold: every key understood, every value of its type, and sizes that a model can have.
            Caught: keys that a loader drops silently, so that another model than the author's is built.
            Sabotage: no JSON; another architecture; a size in words; a billion blocks.""",
    ),
    "W7": Rule(
        "L1",
        "names",
        "every parameter from exactly one tensor, and no tensor left over",
        """Every parameter of the model beside exactly one tensor of the files, and every tensor beside a
            parameter, by a literal table of names.
            Threshold: nothing missing, nothing twice, nothing left over.
            Caught: Phase-Mamba Attempt 2, whose loader was a stub: no tensor of the base model was ever
            taken.
            Sabotage: a missing, an extra and a renamed tensor; a block missing; a block too many.""",
    ),
    "W8": Rule(
        "L1",
        "shapes",
        "the shapes of the configuration",
        """The shape of each tensor, after the transposition that its name stands for, against the
            parameter's.
            Threshold: equal; nothing is broadcast, cut or padded.
            Caught: a configuration of another size than the weights.
            Sabotage: a transposed embedding; a row cut off; a configuration with another width or
            vocabulary.""",
    ),
    "W9": Rule(
        "L1",
        "dtypes",
        "float32, float16 or bfloat16, the same for a kind of tensor in all blocks",
        """The dtype of each tensor: floats where floats belong, the same for a kind of tensor in all
            blocks, and the one that config.json states.
            Threshold: float32, float16, bfloat16, or what quantisation packs; another than config.json states
            warns.
            Caught: integers read as floats, and one tensor that a conversion forgot.
            Sabotage: int32; float64; one tensor in half precision.""",
    ),
    "W10": Rule(
        "L1",
        "tied head",
        "a head equal to the embedding where the configuration ties them",
        """A head that is stored although the configuration ties it to the embedding: their digests.
            Threshold: the same bytes.
            Caught: a head trained of its own, that tying would drop silently.
            Sabotage: a stored head with the opposite sign.""",
    ),
    "W11": Rule(
        "L2",
        "digests",
        "the tensors of the manifest, bit for bit",
        """sha256 of each tensor over (dtype, shape, little-endian bytes), and of their list in the order
            of the names: the root, which does not depend on shards or file order; against the manifest's.
            Threshold: equal.
            Caught: C10: a re-randomised layer 32, and weights of another revision under the same name.
            Sabotage: damage that only digests see: a bit flip, swapped tensors, permuted rows, noise, a new
            sign.""",
    ),
    "W12": Rule(
        "L2",
        "hub digests",
        "the sha256 that the hub promises for each file",
        """sha256 of each whole file from the hub's cache against the one the hub's API promises for it.
            Threshold: equal.
            Caught: a cache that was damaged or written to after the download.
            Sabotage: a promise that the file does not keep.""",
    ),
    "W13": Rule(
        "L3",
        "finite values",
        "no NaN and no infinity",
        """NaN and infinities in every tensor.
            Threshold: none.
            Caught: an overflow in a conversion to half precision.
            Sabotage: one NaN in a matrix; one infinity in an embedding.""",
    ),
    "W14": Rule(
        "L3",
        "zero or constant tensors",
        "tensors with more than one value in them",
        """Tensors with one value only: zeros where a factor belongs, matrices of one value.
            Threshold: none; a bias of zeros is sound, vectors of one other value warn.
            Caught: tensors that were allocated and never filled.
            Sabotage: a zeroed tensor; a zeroed block; a matrix of 0.3.""",
    ),
    "W15": Rule(
        "L3",
        "duplicated tensors",
        "no two weights with the same bytes",
        """Weights with the same digest.
            Threshold: none; a head equal to its embedding warns, it could be tied.
            Caught: a loop over blocks that saved one block again and again.
            Sabotage: one block copied to another.""",
    ),
    "W16": Rule(
        "L3",
        "dead or scaled layers",
        "weights of the size of their kind in the other blocks",
        """The root mean square of each matrix against the median of its kind in the other blocks, and
            times the square root of its inputs against 1, which passes signals on.
            Threshold: within a factor of 1,000 of both.
            Caught: a public RWKV-4 test model whose feed-forward tensors were all at 1e-7, unnoticed.
            Sabotage: a matrix at 1e-6 of its size; one at 1e5; one kind at 1e-7 in every block.""",
    ),
    "W17": Rule(
        "L3",
        "dynamics in range",
        "decays that forget something, and not everything",
        """The parameters that set decays, step sizes and frequencies, each against the range in which it
            means something in float32.
            Threshold: A_log in [-12, 12], step biases in [-50, 50], time_decay in [-30, 20], and the
            like; so A < 0.
            Caught: a decay stored as it is where its logarithm is expected.
            Sabotage: one entry of the decay at 3e4; one at -3e4.""",
    ),
    "W18": Rule(
        "L3",
        "embedding rows",
        "rows of a size with the others",
        """Rows of the embedding a thousand times smaller than the larger ones: tokens never trained.
            Threshold: up to 1 % passes (a padded vocabulary), more warns, more than half fails.
            Caught: a table whose second half was never read from its file.
            Sabotage: 25 of 40 rows at 1e-6 of their size.""",
    ),
    "W19": Rule(
        "L3",
        "fresh or random weights",
        "matrices with structure, vectors that moved since initialisation",
        """Vectors that equal their initial value in every block, bit for bit; matrices whose largest
            singular value (of a corner of up to 512 x 512) is that of a random matrix of their scale.
            Threshold: warns at 1.05 of the Marchenko-Pastur edge; it never fails, because only L5 can judge.
            Caught: Phase-Mamba Attempt 2: 72 minutes of training on random weights.
            Sabotage: a fresh model; matrices with and without one learned direction.""",
    ),
}
LAYERS = {
    layer: tuple(id for id, rule in CHECKS.items() if rule.layer == layer)
    for layer in ("L0", "L1", "L2", "L3")
}
NEW_COPY = "get the file again, and compare its sha256 with the source's"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `warning` marks what is only suspicious."""

    check: str
    got: str
    fix: str = NEW_COPY
    warning: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "got", one_line(self.got))

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


def list_some(names: Iterable[object], limit: int = 3) -> str:
    """The first few of many names: "a, b, c and 4 more"."""
    names = [str(n) for n in names]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
