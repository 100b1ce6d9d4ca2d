"""Where two mixers meet, do both learn and do both speak?"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import read_passage, run_arm
from kssm_mlx.checks.core.probes import cross_entropy, short_context, to_numpy
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, Verdict, check, verdict
from kssm_mlx.checks.core.thresholds import RANK, Band, judge_by_band, root_mean_square
from kssm_mlx.data.batches import random_batch
from kssm_mlx.models.base import Intervention, component_of, flatten, number, training_mode, with_parameters
from kssm_mlx.models.interventions.spec import Observe
from kssm_mlx.training.optimizers.gradients import BRANCHES, component_rms

RATIO = Band(0.1, 10.0, 0.3, 3.0)
ALIVE, LOUD = Band(low=0.01, warn_low=0.05), Band(0.01, 100.0, 0.1, 10.0)


@check(
    "D3",
    level="R",
    also="S",
    title="the loss teaches both mixers",
    source="docs/background/hybrids.md#gradients-of-components",
    needs_training=True,
    passes=3,
)
def gradient_ratio(ctx: Context) -> Check:
    """sqrt(mean g²) over the parameters of each kind of mixer, as `component_of` names them, of the gradient
    of the cross-entropy on 8 training rows before clipping; the ratio of RWKV to Mamba (of the first to the
    second by the alphabet, elsewhere). A mean, so that neither the number of tensors nor of parameters
    counts.

    Threshold: 0.1 to 10 (warns outside 0.3 and 3), the published limits. Below 1 Mamba's gradient is the
    larger one, which says nothing about which of the two the fusion listens to: see D4.
    Caught: "RWKV dominance" read off a ratio of norms over 96 and 64 tensors, the private feed-forward, the
    gains and the norms among them.
    Sabotage: a branch whose output is scaled by 1e-3.
    """
    ctx.need("model", "data", "recipe")
    names = flatten(ctx.model.trainable_parameters())
    tags = sorted(BRANCHES & {component_of(ctx.model, name) for name in names}, reverse=True)
    if len(tags) < 2:
        raise NotMeasurable("there is one kind of mixer, and nothing to compare it with")
    size = component_rms(ctx.model, _gradient(ctx), always=True)
    found = {tag: number(size[f"grad_rms_{tag}"]) for tag in tags}
    pairs = {f"{tags[0]}/{tag}": _ratio(found[tags[0]], found[tag]) for tag in tags[1:]}
    return judge_by_band(
        "D3", pairs, RATIO, "one mixer learns faster: give it [train.groups] of its own", rms=found
    )


def _gradient(ctx: Context) -> dict:
    rows = random_batch(ctx.data.train, ctx.seed, 0, 8, short_context(ctx.recipe, 64)).tokens
    with training_mode(ctx.model, False):
        return mx.grad(
            lambda p: with_parameters(ctx.model, p, lambda: cross_entropy(ctx.model, mx.array(rows)))
        )(ctx.model.trainable_parameters())


def _ratio(a: float, b: float) -> float:
    return a / b if b else np.inf


@check(
    "D4",
    level="S",
    title="no mixer says the same always",
    source="docs/background/hybrids.md#activations",
    needs_training=True,
)
def mixers_vary(ctx: Context) -> Check:
    """What the mixer of each block puts out on 8 rows of held-out text, y [B, T, C]. Over time: root of the
    variance over the tokens of a row, averaged over rows and channels, over the RMS of y. Over the batch: the
    same over the rows at one place. Where RWKV and Mamba meet in a block, the ratio of their RMS.

    Threshold: both >= 0.01 (warns below 0.05): what is constant over time says nothing about the token, and
    what is constant over the batch is a table of positions. Ratio 0.01 to 100 (warns outside 0.1 and 10): a
    hundred times quieter is as good as dead.
    Caught: the published hybrid, in which RWKV drowned Mamba 146 to 1 by a feed-forward of its own.
    Sabotage: a branch that is its own mean over time; one that is the same for all rows; one at 1e-3.
    """
    ctx.need("model", "data")
    spoken = _outputs(ctx)
    alive = {
        f"{name} over {axis}": _variation(y, i) for name, y in spoken.items() for i, axis in enumerate(AXES)
    }
    heard = {
        name.removesuffix(" rwkv"): _ratio(root_mean_square(y), root_mean_square(spoken[other]))
        for name, y in spoken.items()
        if name.endswith(" rwkv") and (other := name.replace(" rwkv", " mamba")) in spoken
    }
    weakest = ALIVE.worst(alive)
    ratio = f", RMS rwkv/mamba {heard[LOUD.worst(heard)]:.3g} ({LOUD.worst(heard)})" if heard else ""
    words: list[Verdict] = [ALIVE.judge(alive[weakest]), *map(LOUD.judge, heard.values())]
    return verdict(
        "D4",
        max(words, key=RANK.index),
        f"variation {alive[weakest]:.3g} ({weakest}){ratio}",
        f"variation {ALIVE}" + (f", ratio {LOUD}" if heard else ""),
        "a mixer is dead or drowned: look at its output projection, at the fusion and at D3",
        variation=alive,
        ratio=heard,
    )


AXES = ("the batch", "time")


def _variation(y: np.ndarray, axis: int) -> float:
    spread = float(np.sqrt(y.astype(np.float64).var(axis=axis).mean()))
    return spread / root_mean_square(y) if root_mean_square(y) else 0.0


def _outputs(ctx: Context) -> dict[str, np.ndarray]:
    """What each mixer puts out, [B, T, C]. Raises: NotMeasurable for a model that does not show it."""
    tokens = read_passage(ctx)
    trace = run_arm(ctx.model, tokens, ctx.seed).trace
    if not any(name.endswith(("/rwkv", "/mamba")) for name in trace):
        trace = _observe_components(ctx, tokens)
    spoken = {
        f"block {int(name[5:7])} {name[8:]}": y
        for name, y in trace.items()
        if name.endswith(("/rwkv", "/mamba", "/units"))
    }
    if not spoken:
        raise NotMeasurable("the trace does not have what the mixers put out")
    return spoken


def _observe_components(ctx: Context, tokens: mx.array) -> dict[str, np.ndarray]:
    if "S2" not in getattr(ctx.model, "act_sites", ()):
        return {}
    with training_mode(ctx.model, False):
        trace = ctx.model.forward(tokens, None, Intervention(acts=(Observe(),))).trace
    return {name: to_numpy(y) for name, y in trace.items() if name.endswith("/units")}
