"""When to go on, to lower the learning rate, or to stop: rules on the curve of the held-out loss.

    rule  says
    T2    patience is a few times the interval between improvements, measured in the first fifth of the run
    T3    a sawtooth is judged by its lower envelope: falling, flat, rising
    T4    held-out loss up by a twentieth while training still falls: overfit, stop
    T5    a fifth of the run without an improvement: converged, stop
    T7    patience spent: cut the learning rate, and be patient anew
    T8    patience spent after that many cuts: stop
    T9    the scatter of the last five above what they improve by: nothing more can be seen; wait

The training loss decides nothing alone (T1). An improvement is a fall by more than `improvement` of the best.
All are pure functions of a curve; the loop writes what they say as events and does it.

Source: docs/background/hybrids.md#rules-for-stopping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kssm_mlx.training.steering_sections import Patience

EARLY = 0.2  # of the run, in which the interval between improvements is measured
WINDOW = 5  # evaluations that T3, T4 and T9 look back at


@dataclass(frozen=True)
class Curve:
    """Held-out and training loss at evaluations, nats per token; steps of the whole run as planned."""

    steps: tuple[int, ...]
    held_out: tuple[float, ...]
    training: tuple[float, ...]
    planned: int

    @property
    def best(self) -> float:
        return min(self.held_out)


class Advice(NamedTuple):
    """action: CONTINUE, WAIT, CUT or STOP; rule: of the table above, or ""; reason: in words."""

    action: str
    rule: str
    reason: str


def advise(curve: Curve, cuts: tuple[int, ...], options: Patience) -> Advice:
    """What to do after the last evaluation of the curve; `cuts`: steps at which the rate was cut before.

    Only cuts since the last improvement count (T8): what improved after a cut has earned its patience.
    """
    if overfits(curve, options.overfit):
        return Advice(
            "STOP", "T4", f"held-out loss rose above its best of {curve.best:.4f}, training still falls"
        )
    improved, now = last_improvement(curve, options.improvement), curve.steps[-1]
    if now - improved > options.plateau * curve.planned:
        return Advice(
            "STOP", "T5", f"no improvement for more than {options.plateau:.0%} of the run: converged"
        )
    since = [step for step in cuts if step > improved]
    idle, interval = now - max([improved, *since]), improvement_interval(curve, options.improvement)
    if interval is not None and idle >= options.intervals * interval:
        return _judge_patience(idle, interval, len(since), options)
    if lower_envelope(curve.held_out, options.improvement) == "flat" and list_unresolved(curve):
        return Advice("WAIT", "T9", f"the last {WINDOW} evaluations scatter by no less than they improve")
    return Advice("CONTINUE", "", "improving, or within patience")


def list_improvements(held_out: tuple[float, ...], share: float) -> list[int]:
    """Indices at which the loss fell by more than `share` of the best before it; the first counts."""
    found, best = [], np.inf
    for i, loss in enumerate(held_out):
        if not found or loss < best - share * abs(best):
            found.append(i)
            best = loss
    return found


def last_improvement(curve: Curve, share: float) -> int:
    """The step of the latest improvement."""
    return curve.steps[list_improvements(curve.held_out, share)[-1]]


def improvement_interval(curve: Curve, share: float) -> float | None:
    """Mean steps between the improvements of the early part (T2); None before there were two."""
    steps = [curve.steps[i] for i in list_improvements(curve.held_out, share)]
    early = [s for s in steps if s <= EARLY * curve.planned]
    used = early if len(early) > 1 else steps[:2]
    return float(np.mean(np.diff(used))) if len(used) > 1 else None


def lower_envelope(held_out: tuple[float, ...], share: float) -> str:
    """Whether the minima of the last evaluations lie below ("falling"), about at ("flat") or above
    ("rising") those of as many before them (T3).
    """
    before, after = held_out[-2 * WINDOW : -WINDOW], held_out[-WINDOW:]
    if not before:
        return "falling"
    change = min(after) / min(before) - 1
    return "falling" if change < -share else "rising" if change > share else "flat"


def overfits(curve: Curve, rise: float) -> bool:
    """Every one of the last two evaluations is above the best by the share `rise`, and the training loss is
    lower than it was at the best (T4).
    """
    at = int(np.argmin(curve.held_out))
    later = curve.held_out[at + 1 :][-2:]
    return (
        len(later) == 2 and min(later) > curve.best * (1 + rise) and curve.training[-1] < curve.training[at]
    )


def list_unresolved(curve: Curve) -> bool:
    """Whether the last evaluations scatter about their line by no less than it falls per evaluation (T9).

    Standard deviation against mean improvement, both in nats; the published rule compares a variance.
    """
    if len(curve.held_out) < WINDOW:
        return False
    at, losses = np.arange(WINDOW), np.array(curve.held_out[-WINDOW:])
    slope, start = np.polyfit(at, losses, 1)
    scatter = np.sqrt(np.sum((losses - slope * at - start) ** 2) / (WINDOW - 2))
    return bool(scatter >= -slope)


def _judge_patience(idle: int, interval: float, cuts: int, options: Patience) -> Advice:
    spent = f"no improvement for {idle} steps, {options.intervals:g} times their interval of {interval:.0f}"
    if cuts >= options.cuts:
        return Advice("STOP", "T8", f"{spent}, after {cuts} cuts of the learning rate")
    return Advice("CUT", "T7", f"{spent}: learning rate times {options.cut:g}")
