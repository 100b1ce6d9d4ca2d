"""Every text of Metal that the kernels have, checked and run.

Every op in every variant that the shipped models use, each of its ways, both dtypes, with masks and without,
forward and backward, in the sizes of the proof and at the edges: one token, arrays of fewer than eight
elements, long sequences. The texts differ in all of these: in constants, types and address spaces.
`python -m tests.support.metal_sweep` prints a table of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import kssm_mlx  # noqa: F401  before mlx, which takes the first BLAS that is there

# isort: split
import mlx.core as mx

from kssm_mlx.ops import dispatch, gpu, proof
from tests.support import metal_text
from tests.support.dialects import kernels_in

OPS = [op for op in dispatch.OPS if op not in dispatch.FOR_CPUS]
# One phase feels no mean field of others: its gradients are rounding.
EDGES = ((1, 1, 2), (1, 2, 3), (3, 17, 2), (3, 37, 16), (12, 3, 11))
LONG = (2, 1025, 3)
# Coupled phases amplify the last digit from token to token.
CHAOTIC = ("kuramoto_bank",)


@dataclass
class Row:
    """What was found of one op: its kernels, texts and launches, and the largest errors by dtype."""

    op: str
    kernels: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    launches: int = 0
    errors: dict[mx.Dtype, float] = field(default_factory=lambda: {mx.float32: 0.0, mx.bfloat16: 0.0})

    @property
    def ok(self) -> bool:
        return all(error <= proof.tolerance(dtype) for dtype, error in self.errors.items())


def sweep(op: str) -> Row:
    """All of an op. Raises: MetalTextError for a text or a run that Metal would not take."""
    case, row = dispatch.case(op), Row(op)
    row.kernels = {k.name for k in vars(dispatch.module(op)).values() if isinstance(k, gpu.Kernel)}
    metal_text.LAUNCHES.clear()
    with kernels_in("metal-text"):
        for variant in case.variants:
            for way in case.ways(**variant):
                with dispatch.use_variant(op, way):
                    _sizes(row, case, variant)
    row.texts, row.launches = set(metal_text.LAUNCHES), metal_text.LAUNCHES.total()
    return row


def _sizes(row: Row, case: proof.Case, variant: proof.Variant) -> None:
    sizes = (*case.sizes, *EDGES, *([] if row.op in CHAOTIC else [LONG]))
    for dtype in row.errors:
        for size in sizes:
            for masked in (False, True)[: 1 + case.masked]:
                error = proof.compare(case, *size, dtype=dtype, masked=masked, **variant)
                row.errors[dtype] = max(row.errors[dtype], error, key=lambda e: (e != e, e))


def main() -> None:
    print("| op | kernels | texts | launches | largest error, fp32 | bf16 |\n|---|---|---|---|---|---|")
    texts: set[str] = set()
    for row in map(sweep, OPS):
        texts |= row.texts
        errors = " | ".join(f"{error:.1e}" for error in row.errors.values())
        print(f"| {row.op} | {len(row.kernels)} | {len(row.texts)} | {row.launches} | {errors} |", flush=True)
    print(f"\n{len(texts)} texts in all")


if __name__ == "__main__":
    main()
