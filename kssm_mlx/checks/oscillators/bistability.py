"""Does a model that is called bistable have two states to be in?"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import blocks_with, run_arm
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict

STARTS, STEPS = 32, 200
POINTS, SHARE = 200, 0.01  # of the sphere, for wells, and of these to count as a basin
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
    """Asked of models that say so: `triadic`, `wells` or variant "bistable" in the configuration. Every
    population of every block starts from 32 states spread over the disc and reads 200 tokens that say
    nothing. Final states linked by distances <= 0.05 are one cluster; a population that still turns is judged
    by R. Then each final state is moved by 1 % of the disc, and reads 200 tokens more. Populations with wells
    start from 200 points of the sphere and are drawn by their wells alone, neither turned nor kicked, until
    they rest.

    Protocol: `model.free_states(block, steps, z0)`, the states after `steps` tokens of zero field, [S, 2, G];
    `model.settle_in_wells(block, starts)`, where wells take starts [S, 3] to, [S, 3, G].
    Threshold: two clusters > 0.1 apart with > 5 % of the starts each and > 80 % together, to which kicked
    states come back at least half of the way, in one population of every block or more: slow ones need more
    than 200 tokens. Otherwise the model must not be called bistable. Of wells two clusters with > 1 % of the
    starts each, in one population of every block or more.
    Caught: v3, whose two roots +-sqrt(u) act alike and whose oscillators are made anew at every token.
    Sabotage: a population with one attractor; a state that stays wherever it is put; a state that a kick to
    one side leaves; K-SSM v3; a triadic coupling outside its window; wells that are too blunt.
    """
    ctx.need("model")
    config = getattr(ctx.model, "args", None)
    if wells := getattr(config, "wells", 0):
        return _judge_wells(ctx.model, wells)
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
        _pick_clearest_portrait(worst, share[worst], portraits[worst])
        if carried
        else "no state is carried from token to token: there is no free_states(block, steps, z0)",
        f"two clusters > {APART} apart, each with > {BASIN:.0%} of the starts, kicks undone, in every block",
        "do not call it bistable: strengthen the interaction until two states exist without input",
        share={str(b): v for b, v in share.items()},
    )


def _judge_wells(model: Any, wells: int) -> Check:
    """How many of a population's wells hold it: the mean over populations, in the worst block."""
    held = {b: _count_basins(np.array(model.settle_in_wells(b, _spread()))) for b in range(len(model.layers))}
    worst = min(held, key=lambda b: held[b].max())
    counts = held[worst]
    return verdict(
        "C26",
        bool(counts.max() >= 2),
        f"of {wells} wells {counts.mean():.1f} hold a population of block {worst}, "
        f"{counts.min()} to {counts.max()}",
        f"two clusters with > {SHARE:.0%} of the starts each, in every block",
        "the wells are too blunt to tell states apart: raise model.sharpness, or leave model.wells out",
        held={str(b): counts.tolist() for b, counts in held.items()},
    )


def _spread() -> mx.array:
    """Points spread evenly over the sphere, by the golden angle. Shapes: [S, 3]."""
    i = np.arange(POINTS)
    z, turn = 1 - (2 * i + 1) / POINTS, 2.399963 * i
    flat = np.sqrt(1 - z * z)
    return mx.array(0.9 * np.stack([flat * np.cos(turn), flat * np.sin(turn), z], -1), mx.float32)


def _count_basins(ends: np.ndarray) -> np.ndarray:
    """Clusters that a share of the starts ends in, of each population. Shapes: ends [S, 3, G] -> [G]."""
    from scipy.cluster.hierarchy import fcluster, linkage

    labels = (fcluster(linkage(x, "single"), LINK, "distance") for x in np.moveaxis(ends, 2, 0))
    return np.array([(np.bincount(own)[1:] > SHARE * len(ends)).sum() for own in labels])


def _pick_clearest_portrait(block: int, share: float, portraits: list[Portrait]) -> str:
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
    rest = _step_quiet_tokens(model, block, np.repeat(starts[:, None], groups, axis=1))
    kicked = (1 - KICK) * rest + KICK * np.exp(1j * rng.uniform(-np.pi, np.pi, rest.shape))
    later, again = np.split(_step_quiet_tokens(model, block, np.concatenate([rest, kicked])), 2)
    turning = np.max(np.abs(later - rest), axis=0) > STILL
    seen = [np.where(turning, np.abs(z), z) for z in (later, again)]
    return [draw_portrait(*(z[:, g] for z in seen)) for g in range(groups)]


def _step_quiet_tokens(model: Any, block: int, z: np.ndarray) -> np.ndarray:
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
