"""The named quantities of a forward pass, reduced to a few numbers for `metrics.jsonl`.

A model writes `block03/R` into its trace; the row says `R_block03`. A run with `[monitor]` has, beside the
blocks, one number of each kind for the whole model:

    R, U, RU                  order parameter, mean entropy of the predictions / ln V, their product
    phase_mean, phase_std     circular, of all oscillators (`theta` in the trace; else psi)
    omega_mean, omega_std     of the natural frequencies among the parameters

Angles are averaged on the circle, so what is averaged over micro-batches is their cosine and sine, and the
angle is taken at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from kssm_mlx.models.base import flatten
from kssm_mlx.ops.elementary import cos, exp, logsumexp, sin

MEANS = ("R", "h", "lyapunov", "U")
ANGLES = ("psi", "theta")


def average_observables(trace: dict) -> dict[str, mx.array]:
    """Means [] fp32 over batch, time and groups; linear, so those of equal pieces average to the whole's.

    Where a block has `mean_R` and `mean_h`, what costs more than the block is left to whoever asks for it.
    """
    found = {}
    cheap = {name.rpartition("/")[0] for name in trace if name.endswith("/mean_R")}
    for name, value in trace.items():
        block, _, quantity = name.rpartition("/")
        if block in cheap and not quantity.startswith("mean_"):
            continue
        quantity = quantity.removeprefix("mean_")
        column = f"{quantity}_{block}" if block else quantity
        if quantity in MEANS:
            found[column] = mx.mean(value.astype(mx.float32))
        elif quantity in ANGLES:
            angle = value.astype(mx.float32)
            found[f"cos {column}"] = mx.mean(cos(angle))
            found[f"sin {column}"] = mx.mean(sin(angle))
    return found


def summarize_trace(averages: dict[str, mx.array]) -> dict[str, mx.array]:
    """The columns of a metrics row: plain means as they are, angles in radians in (-π, π]."""
    columns = {}
    for name, value in averages.items():
        kind, _, angle = name.partition(" ")
        if kind == "cos":
            columns[angle] = mx.arctan2(averages[f"sin {angle}"], value)
        elif kind != "sin":
            columns[name] = value
    return columns


def average_over_blocks(averages: dict[str, mx.array], params: dict[str, Any]) -> dict[str, mx.array]:
    """The columns of the whole model, as far as it has them: R, U, RU, phases and frequencies."""
    R = _stack_columns(averages, "R_")
    columns = {"R": mx.mean(R)} if R is not None else {}
    if columns and "U" in averages:
        columns["RU"] = columns["R"] * averages["U"]
    for angle in ANGLES[::-1]:
        c, s = _stack_columns(averages, f"cos {angle}_"), _stack_columns(averages, f"sin {angle}_")
        if c is not None and s is not None:
            c, s = mx.mean(c), mx.mean(s)
            columns["phase_mean"] = mx.arctan2(s, c)
            # Mardia and Jupp 2000, Directional Statistics, eq. 2.3.14: the standard deviation on a circle.
            columns["phase_std"] = mx.sqrt(-mx.log(mx.clip(c * c + s * s, 1e-12, 1.0)))
            break
    omega = [mx.flatten(p) for name, p in flatten(params).items() if name.rpartition(".")[2] == "omega"]
    if omega:
        every = mx.concatenate(omega)
        columns["omega_mean"], columns["omega_std"] = mx.mean(every), mx.std(every)
    return columns


def uncertainty(logits: mx.array, targets: mx.array) -> mx.array:
    """U: the mean entropy of the predictions over the scored positions, as a share of ln V, fp32 [].

    0 is certain, 1 uniform. Shapes: logits [..., V], targets int [...], below zero where not scored.
    """
    scored = targets >= 0
    total = mx.sum(mx.where(scored, entropy(logits), 0.0))
    return total / (mx.maximum(mx.sum(scored), 1) * math.log(logits.shape[-1]))


def chunked_uncertainty(
    hidden: mx.array, head: Any, project: Callable, targets: mx.array, chunk: int
) -> mx.array:
    """`uncertainty(project(hidden, head), targets)` to look at: no gradient, few logits in memory."""
    hidden, total, scored = mx.stop_gradient(hidden), mx.array(0.0), mx.maximum(mx.sum(targets >= 0), 1)
    for t in range(0, targets.shape[1], chunk):
        (part,) = mx.depends([hidden[:, t : t + chunk]], [total])
        logits = mx.stop_gradient(project(part, head))
        total = total + mx.sum(mx.where(targets[:, t : t + chunk] >= 0, entropy(logits), 0.0))
    return total / (scored * math.log(logits.shape[-1]))


def entropy(logits: mx.array) -> mx.array:
    """Of each prediction, nats, fp32. Shapes: [..., V] -> [...]."""
    logits = logits.astype(mx.float32)
    log_p = logits - logsumexp(logits)[..., None]
    return -mx.sum(exp(log_p) * log_p, axis=-1)


def _stack_columns(averages: dict[str, mx.array], prefix: str) -> mx.array | None:
    """The values of every column with this prefix, stacked; None where there is none."""
    found = [value for name, value in averages.items() if name.startswith(prefix)]
    return mx.stack(found) if found else None
