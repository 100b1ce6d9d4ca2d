"""The named quantities of a forward pass, reduced to one number per block for `metrics.jsonl`.

A model writes `block03/R` into its trace; the row says `R_block03`. Phases are averaged on the circle, so
what is averaged over micro-batches is their cosine and sine, and the angle is taken at the end.
"""

from __future__ import annotations

import mlx.core as mx

MEANS = ("R", "h", "lyapunov")
ANGLES = ("psi",)


def averages(trace: dict) -> dict[str, mx.array]:
    """Means [] fp32 over batch, time and groups; linear, so those of equal pieces average to the whole's."""
    found = {}
    for name, value in trace.items():
        block, _, quantity = name.partition("/")
        if quantity in MEANS:
            found[f"{quantity}_{block}"] = mx.mean(value.astype(mx.float32))
        elif quantity in ANGLES:
            angle = value.astype(mx.float32)
            found[f"cos {quantity}_{block}"] = mx.mean(mx.cos(angle))
            found[f"sin {quantity}_{block}"] = mx.mean(mx.sin(angle))
    return found


def summary(averages: dict[str, mx.array]) -> dict[str, mx.array]:
    """The columns of a metrics row: plain means as they are, angles in radians in (-π, π]."""
    columns = {}
    for name, value in averages.items():
        kind, _, angle = name.partition(" ")
        if kind == "cos":
            columns[angle] = mx.arctan2(averages[f"sin {angle}"], value)
        elif kind != "sin":
            columns[name] = value
    return columns
