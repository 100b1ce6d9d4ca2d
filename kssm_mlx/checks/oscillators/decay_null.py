"""Did R move because the model learned, or because weight decay shrank what R is made of?"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from kssm_mlx.checks.core.conditions import mean_R, read_passage, run_arm
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.models.base import flatten, with_parameters
from kssm_mlx.training.optimizers.average import memory
from kssm_mlx.training.optimizers.updates import make_optimizer
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.schedules import schedule

MOVED, WARN, FAIL = 0.01, 0.2, 0.5
PHYSICS = ("omega", "gamma", "phase", "phases", "theta", "spread", "delta", "sigma")


@check(
    "C9",
    level="S",
    also="P",
    title="R is learned, not decayed",
    source="docs/background/k-ssm.md#r-climbs-by-weight-decay",
    passes=3,
)
def decay_null(ctx: Context) -> Check:
    """The null run: the recipe's schedule from the initial parameters with every gradient zero, in which
    every optimizer leaves p prod_t (1 - lr_t decay). On 4 rows of held-out text, mean R per block of the
    initial, the decayed and the trained parameters; share = (dR_null . dR_train) / |dR_train|^2 over the
    blocks. Before training only the recipe is read: oscillator parameters other than projections, gains and
    biases should not decay.

    Threshold: warn above 20 %, fail above 50 %: then the schedule moves R more than the data does. A decay
    that pulls R the other way explains nothing (share below 0). Not measurable where R moved by < 0.01; an R
    that is not a number fails.
    Caught: the rise of R in v3 from 0.01 to 0.81, which weight decay on the frequencies alone reproduces to
    0.002.
    Sabotage: a recipe that decays the frequencies of a model that learns nothing; frequencies of NaN.
    """
    ctx.need("model", "recipe")
    decays = decay_of(ctx.model, ctx.recipe.train)
    texts = read_passage(ctx, rows=4)
    now = _coherence(ctx, texts)
    if ctx.initial is None or not ctx.step:
        return _judge_decay(_find_shrinking_parameters(ctx.model, decays))
    lr = np.array(schedule(ctx.recipe.train)(mx.arange(ctx.step)), np.float64)
    start = {name: mx.array(p) for name, p in ctx.initial.items()}
    left = {decay: _share_left(lr * decay, ctx.recipe.train.ema) for decay in {*decays.values()}}
    null = {name: p * left[decays[name]] for name, p in start.items()}
    before, decayed = (
        with_parameters(ctx.model, tree_unflatten(list(p.items())), lambda: _coherence(ctx, texts))
        for p in (start, null)
    )
    trained, drift = now - before, decayed - before
    if np.max(np.abs(trained)) < MOVED:
        raise NotMeasurable(f"R moved by {np.max(np.abs(trained)):.1e}: there is nothing to explain")
    share = float(drift @ trained / (trained @ trained))
    return verdict(
        "C9",
        "pass" if share <= WARN else "warn" if share <= FAIL else "fail",
        f"R moved by {_largest_change(trained):+.3f}, by decay alone {_largest_change(drift):+.3f}: "
        f"{share:.0%} of it",
        f"<= {WARN:.0%} (fails above {FAIL:.0%})",
        'take the oscillators out of weight decay: train.decay = "matrices", and name them in no_decay',
        share=share,
        learned=trained.tolist(),
        decay=drift.tolist(),
        shrinking=_find_shrinking_parameters(ctx.model, decays),
    )


def decay_of(model, train: Train) -> dict[str, Any]:
    """What each trainable parameter loses per unit of learning rate."""
    optimizer = make_optimizer(model, train)
    return {name: decay * optimizer.rates[name] for name, decay in optimizer.decays.items()}


def _share_left(shrinking: np.ndarray, ema: float | None) -> float:
    """What updates that shrink a parameter by these shares leave of it, or of its average."""
    shares = np.cumprod(1 - shrinking)
    if ema is None:
        return float(shares[-1])
    average = 1.0
    for n, share in enumerate(shares, start=1):
        average += (1 - memory(ema, n)) * (share - average)
    return float(average)


def _coherence(ctx: Context, tokens: mx.array) -> np.ndarray:
    """Mean R of each block. Raises: NotMeasurable where the trace has none."""
    return np.array(list(mean_R(run_arm(ctx.model, tokens, ctx.seed).trace).values()))


def _find_shrinking_parameters(model, decays: dict[str, float]) -> list[str]:
    """Parameters that decay although R, a scale or a zero point hangs on their size: vectors, and PHYSICS."""
    arrays = flatten(model.trainable_parameters())
    return [n for n, p in arrays.items() if decays[n] > 0 and (p.ndim < 2 or n.endswith(PHYSICS))]


def _judge_decay(shrinking: list[str]) -> Check:
    return verdict(
        "C9",
        "warn" if shrinking else "pass",
        f"weight decay shrinks {', '.join(shrinking[:4])}{' ...' if len(shrinking) > 4 else ''}"
        if shrinking
        else "no frequency, phase, gain or bias decays",
        "decay on matrices that project, and on nothing else",
        'R would move without any learning: train.decay = "matrices", and name them in no_decay',
        shrinking=shrinking,
    )


def _largest_change(change: np.ndarray) -> float:
    return float(change[np.argmax(np.abs(change))])
