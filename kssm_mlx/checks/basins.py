"""Does a model that is called bistable have two states to be in?"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.base import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.oscillators.planar import Planar

STARTS, STEPS, MORE = 32, 400, 20
APART, BASIN, KICK, STILL = 0.1, 0.05, 0.01, 1e-3


class Portrait(NamedTuple):
    """What one population does without input. apart: distance of the two largest clusters of final states (0
    where there is one); basin: share of the starts that the smaller of them drew; back: the farthest that a
    kicked state ended from where it was.
    """

    apart: float
    basin: float
    back: float

    @property
    def bistable(self) -> bool:
        return self.apart > APART and self.basin > BASIN and self.back < APART / 2


@check("C26", level="P", title="a bistable model has two states", source="liminal.md C26", passes=4)
def bistability(ctx: Context) -> Check:
    """Asked of models whose configuration says `bistable` (or names an interaction that is). Every
    population of every block starts from 32 states spread over the disc and runs 400 tokens without a
    field; final states that are linked by distances <= 0.05 are one cluster. A population that still turns
    is judged by R. Then each final state is moved by 1 % of the disc and runs 400 tokens more.

    Protocol: `model.free_states(block, steps, z0)`, z0 Planar [n, G] -> Planar [n, G] after `steps` tokens
    of zero field.
    Threshold: two clusters > 0.1 apart, each reached from > 5 % of the starts and returned to within 0.05
    after the kick, in at least one population of every block. Otherwise the model must not be called
    bistable.
    Caught: v3, whose two roots +-sqrt(u) act alike and whose oscillators are computed anew at every token.
    Sabotage: a population with one attractor; a state that stays wherever it is put; two states of which
    one is a point that any kick leaves.
    """
    ctx.need("model")
    if not getattr(ctx.model, "claims_bistability", False):
        raise NotMeasurable("the model does not claim two states")
    if not hasattr(ctx.model, "free_states"):
        raise NotMeasurable("the model has no free_states(block, steps, z0), so nothing shows two states")
    portraits = [_portraits(ctx.model, block, ctx.seed) for block in range(len(ctx.model.layers))]
    share = [float(np.mean([p.bistable for p in found])) for found in portraits]
    worst = int(np.argmin(share))
    best = max(portraits[worst], key=lambda p: (p.bistable, min(p.apart, APART), p.basin))
    return verdict(
        "C26",
        min(share) > 0,
        f"{share[worst]:.0%} of the populations of block {worst} have two states; the clearest: "
        f"{best.apart:.2f} apart, smaller basin {best.basin:.0%}, {best.back:.1e} off after a kick",
        f"> {APART} apart, basins > {BASIN:.0%}, back within {APART / 2}, in every block",
        "do not call it bistable: strengthen the interaction until two states exist without input",
        share=share,
        portraits=[[tuple(p) for p in found[:8]] for found in portraits],
    )


def _portraits(model: Any, block: int, seed: int) -> list[Portrait]:
    """One portrait per population."""
    rng = np.random.default_rng((seed, 26))
    groups = model.free_states(block, 0, Planar.zeros((1, 1))).shape[-1]
    radius, angle = np.sqrt(rng.uniform(0, 0.98, (STARTS, 1))), rng.uniform(-np.pi, np.pi, (STARTS, 1))
    z0 = np.broadcast_to(radius * np.exp(1j * angle), (STARTS, groups))
    first = _run(model, block, STEPS, z0)
    kicked = first * 0.99 + KICK * np.exp(1j * rng.uniform(-np.pi, np.pi, first.shape))
    again, later = _run(model, block, STEPS, kicked), _run(model, block, STEPS, first)
    turning = np.max(np.abs(later - first), axis=0) > STILL
    seen = [np.where(turning, np.abs(z), z) for z in (first, again, later)]
    return [portrait(*(z[:, g] for z in seen)) for g in range(groups)]


def _run(model: Any, block: int, steps: int, z: np.ndarray) -> np.ndarray:
    out = model.free_states(block, steps, Planar(mx.array(z.real, mx.float32), mx.array(z.imag, mx.float32)))
    return np.array(out.re, np.float64) + 1j * np.array(out.im, np.float64)


def portrait(settled: np.ndarray, kicked: np.ndarray, undisturbed: np.ndarray) -> Portrait:
    """Of final states, of those after a kick, and of those as long without one. Shapes: three of [starts]."""
    from scipy.cluster.hierarchy import fcluster, linkage

    points = np.stack([settled.real, settled.imag], axis=-1)
    labels = fcluster(linkage(points, "single"), APART / 2, "distance")
    sizes = np.bincount(labels)[1:]
    back = float(np.max(np.abs(kicked - undisturbed)))
    if len(sizes) < 2:
        return Portrait(0.0, 0.0, back)
    one, two = np.argsort(sizes)[:-3:-1] + 1
    apart = abs(settled[labels == one].mean() - settled[labels == two].mean())
    return Portrait(float(apart), float(sizes[two - 1] / len(labels)), back)
