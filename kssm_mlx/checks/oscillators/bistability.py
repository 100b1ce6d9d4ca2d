"""Does a model that is called bistable have two states to be in?"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import blocks_with, run_arm
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict

STARTS, STEPS = 32, 200
LINK, APART, BASIN, OTHERS, KICK, STILL = 0.05, 0.1, 0.05, 0.2, 0.01, 1e-3


class Portrait(NamedTuple):
    """What one population does without input. apart: distance of the two largest clusters of final states (0
    where there is one); basin: the share of the starts that the smaller of the two drew; elsewhere: the share
    that neither drew; off: how far a kick of 1 % left any of them in the end.
    """

    apart: float
    basin: float
    elsewhere: float
    off: float

    @property
    def bistable(self) -> bool:
        two = self.apart > APART and self.basin > BASIN and self.elsewhere < OTHERS
        return two and self.off < KICK / 2


@check(
    "C26",
    level="P",
    title="a bistable model has two states",
    source="docs/background/k-ssm.md#bistable-in-name",
    passes=1,
)
def has_two_states(ctx: Context) -> Check:
    """Asked of models that say so: `triadic` or variant "bistable" in the configuration. Every population of
    every block starts from 32 states spread over the disc and reads 200 tokens that say nothing. Final states
    linked by distances <= 0.05 are one cluster; a population that still turns is judged by R. Then each final
    state is moved by 1 % of the disc, and reads 200 tokens more.

    Protocol: `model.free_states(block, steps, z0)`, the states after `steps` tokens of zero field, [S, 2, G].
    Threshold: two clusters > 0.1 apart with > 5 % of the starts each and > 80 % together, to which kicked
    states come back at least half of the way, in one population of every block or more: slow ones need more
    than 200 tokens. Otherwise the model must not be called bistable.
    Caught: v3, whose two roots +-sqrt(u) act alike and whose oscillators are made anew at every token.
    Sabotage: a population with one attractor; a state that stays wherever it is put; a state that a kick to
    one side leaves; K-SSM v3; a triadic coupling outside its window.
    """
    ctx.need("model")
    config = getattr(ctx.model, "args", None)
    if getattr(config, "triadic", None) is None and getattr(config, "variant", None) != "bistable":
        raise NotMeasurable("the model does not claim two states")
    carried = hasattr(ctx.model, "free_states")
    widths = blocks_with(run_arm(ctx.model, mx.zeros((1, 2), mx.int32)).trace, "R") if carried else {}
    if carried and not widths:
        raise NotMeasurable('how many populations a block has is not known: the trace has no "block00/R"')
    portraits = {b: _portraits(ctx.model, b, R.shape[-1], ctx.seed) for b, R in widths.items()}
    share = {b: float(np.mean([p.bistable for p in found])) for b, found in portraits.items()}
    worst = min(share, key=share.__getitem__, default=-1)
    return verdict(
        "C26",
        carried and share[worst] > 0,
        _clearest(worst, share[worst], portraits[worst])
        if carried
        else "no state is carried from token to token: there is no free_states(block, steps, z0)",
        f"two clusters > {APART} apart, each with > {BASIN:.0%} of the starts, kicks undone, in every block",
        "do not call it bistable: strengthen the interaction until two states exist without input",
        share={str(b): v for b, v in share.items()},
    )


def _clearest(block: int, share: float, portraits: list[Portrait]) -> str:
    best = max(portraits, key=lambda p: (p.bistable, min(p.apart, APART), p.basin))
    return (
        f"{share:.0%} of the populations of block {block} have two states; the clearest: {best.apart:.2f} "
        f"apart, {best.basin:.0%} in the smaller basin, {best.elsewhere:.0%} in neither, {best.off:.1e} off "
        "after a kick"
    )


def _portraits(model: Any, block: int, groups: int, seed: int) -> list[Portrait]:
    """One portrait per population."""
    rng = np.random.default_rng((seed, 26))
    # R evenly from 0.01 to 0.99, psi by the golden angle: no chance decides how many starts a basin has.
    starts = np.linspace(0.01, 0.99, STARTS) * np.exp(2.399963j * np.arange(STARTS))
    rest = _quiet(model, block, np.repeat(starts[:, None], groups, axis=1))
    kicked = (1 - KICK) * rest + KICK * np.exp(1j * rng.uniform(-np.pi, np.pi, rest.shape))
    later, again = np.split(_quiet(model, block, np.concatenate([rest, kicked])), 2)
    turning = np.max(np.abs(later - rest), axis=0) > STILL
    seen = [np.where(turning, np.abs(z), z) for z in (later, again)]
    return [draw_portrait(*(z[:, g] for z in seen)) for g in range(groups)]


def _quiet(model: Any, block: int, z: np.ndarray) -> np.ndarray:
    """States [S, G] after the tokens that say nothing."""
    out = np.array(
        model.free_states(block, STEPS, mx.array(np.stack([np.real(z), np.imag(z)], axis=1), mx.float32))
    )
    return out[:, 0].astype(np.float64) + 1j * out[:, 1]


def draw_portrait(later: np.ndarray, kicked: np.ndarray) -> Portrait:
    """Of final states, and of the same after a kick and as long again. Shapes: [S], [S]."""
    from scipy.cluster.hierarchy import fcluster, linkage

    points = np.stack([np.real(later), np.imag(later)], axis=-1)
    labels = fcluster(linkage(points, "single"), LINK, "distance")
    sizes, off = np.bincount(labels)[1:], float(np.max(np.abs(kicked - later)))
    if len(sizes) < 2:
        return Portrait(0.0, 0.0, 0.0, off)
    one, two = np.argsort(sizes)[:-3:-1] + 1
    apart = abs(later[labels == one].mean() - later[labels == two].mean())
    smaller, both = sizes[two - 1] / STARTS, (sizes[one - 1] + sizes[two - 1]) / STARTS
    return Portrait(float(apart), float(smaller), float(1 - both), off)
