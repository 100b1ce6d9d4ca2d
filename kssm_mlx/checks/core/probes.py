"""What the checks of a model share: seeded tokens, logits as numpy, and a deviation in units of their
spread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable
from kssm_mlx.checks.core.thresholds import Band
from kssm_mlx.models.base import LanguageModel, flatten, training_mode, with_parameters
from kssm_mlx.models.interventions.calibration import ModelWithIntervention
from kssm_mlx.training import losses


def vocabulary_size(model: Any) -> int:
    """The number of ids a model can read. Raises: NotMeasurable for a model that does not say."""
    size = getattr(getattr(model, "args", None), "vocab_size", None)
    if size is None:
        raise NotMeasurable("the model has no args.vocab_size")
    return int(size)


def probe_length(ctx: Context, most: int = 128) -> int:
    """Tokens per probe: the recipe's context, at most `most`; 64 without a recipe."""
    return min(ctx.recipe.train.context, most) if ctx.recipe is not None else min(64, most)


def short_context(recipe: Any, most: int) -> int:
    """The context of a recipe, at most `most`; the rows of a task stay whole."""
    context = recipe.train.context
    return context if recipe.data.source.startswith("task:") else min(context, most)


def random_tokens(ctx: Context, rows: int, length: int, stream: int = 0) -> np.ndarray:
    """Uniform ids [rows, length], the same for the same (ctx.seed, stream)."""
    rng = np.random.default_rng((ctx.seed, stream))
    return rng.integers(0, vocabulary_size(ctx.model), (rows, length), dtype=np.int32)


def as_run(ctx: Context) -> LanguageModel:
    """The model as its run trains and scores it: under the intervention of the recipe, where it has one."""
    return ModelWithIntervention(ctx.model, ctx.intervention) if ctx.intervention else ctx.model


def swap_token(tokens: np.ndarray, vocab_size: int, stream: int = 0) -> np.ndarray:
    """Other ids everywhere: each entry moved by a seeded non-zero amount, modulo the vocabulary."""
    rng = np.random.default_rng((stream, tokens.size))
    return (tokens + rng.integers(1, max(2, vocab_size), tokens.shape, dtype=np.int32)) % vocab_size


def logits_of(model: LanguageModel, tokens: np.ndarray, training: bool = False, seed: int = 0) -> np.ndarray:
    """float32 logits [B, T, V] of a call without a cache; dropout, if there is any, repeats with `seed`."""
    with training_mode(model, training):
        if training:
            mx.random.seed(seed)
        return to_numpy(model(mx.array(tokens)))


def perturb_zero_init(measure: Callable[[Context], Check]) -> Callable[[Context], Check]:
    """A check as it is made before step 1: matrices that begin at zero hold small random numbers meanwhile.

    The output projections of a fresh RWKV or of a graft are zero, so what lies behind them shows in no logit,
    whether it is sound or not.
    """

    @wraps(measure)
    def measured(ctx: Context) -> Check:
        asleep = _zero_matrices(ctx.model) if ctx.step == 0 else []
        if not asleep:
            return measure(ctx)
        ctx.model.update(tree_unflatten(_draw_matrices(asleep, ctx.seed)))
        try:
            return measure(ctx)
        finally:
            ctx.model.update(tree_unflatten(asleep))

    return measured


def _zero_matrices(model: LanguageModel | None) -> list[tuple[str, mx.array]]:
    arrays = flatten(model.parameters()) if isinstance(model, nn.Module) else {}
    return [(name, p) for name, p in arrays.items() if p.ndim == 2 and not mx.any(p != 0)]


def _draw_matrices(asleep: list[tuple[str, mx.array]], seed: int) -> list[tuple[str, mx.array]]:
    """The same matrices, normal, of half the size that passes signals on."""
    keys = mx.random.split(mx.random.key(seed), len(asleep) + 1)
    return [
        (name, 0.5 * p.shape[1] ** -0.5 * mx.random.normal(p.shape, p.dtype, key=key))
        for (name, p), key in zip(asleep, keys)
    ]


def to_numpy(array: mx.array) -> np.ndarray:
    """float32 numpy copy (numpy has no bfloat16)."""
    return np.array(array.astype(mx.float32))


def logit_spread(logits: np.ndarray) -> float:
    """Standard deviation of the logits. Raises: NotMeasurable where all are equal (a head of zeros)."""
    std = float(np.std(logits))
    if std == 0:
        raise NotMeasurable("all logits are equal (a head that starts at zero?), so no influence can show")
    return std


def logit_deviation(a: np.ndarray, b: np.ndarray, scale: float) -> float:
    """max |a - b| in units of `scale`; NaN where either holds one, and NaN passes no threshold."""
    return float(np.max(np.abs(a - b))) / scale


def dtype_tolerance(model: LanguageModel, float32: float, half: float = 2e-2) -> float:
    """The rounding allowed at the model's precision: `half` as soon as one matrix is not float32."""
    matrices = [p for p in flatten(model.parameters()).values() if p.ndim >= 2]
    return float32 if all(p.dtype == mx.float32 for p in matrices) else half


def rounding_band(model: LanguageModel, tokens: np.ndarray, measured: Mapping[str, float]) -> Band:
    """What two orders of the same sums may differ by: 1e-4 in float32, 2e-2 below, in spreads of the logits.

    Where something measured lies above 1e-4 the model is asked how much of rounding it makes itself: the most
    that its logits move in four draws of every weight up or down by one float32 step, times five, and never
    above 1e-2. Populations that settle in sharp wells make 1e-4 and more of it at the border between two; a
    hundred such models, not trained, kept to half of the allowance (a slow test), while a cache that is
    ignored or late is off by whole spreads, and one in bfloat16 by thousands of steps.
    """
    limit = dtype_tolerance(model, 1e-4)
    if limit > 1e-4 or all(deviation <= limit for deviation in measured.values()):
        return Band(high=limit)
    moved = 5 * rounding_amplified(model, tokens)
    # A NaN stays out of the bound: what is measured decides.
    return Band(high=min(max(limit, moved), 1e-2) if np.isfinite(moved) else limit)


def rounding_amplified(model: LanguageModel, tokens: np.ndarray, draws: int = 4) -> float:
    """The most, of some draws, that logits move by when every weight moves by one float32 step (2**-23 of
    it), up or down; in units of their standard deviation. Shapes: tokens [B, T].
    """
    logits = logits_of(model, tokens)
    scale = logit_spread(logits)

    def nudge(weight: mx.array, key: mx.array) -> mx.array:
        if weight.dtype != mx.float32:
            return weight
        return weight * (1 + (2 * mx.random.bernoulli(shape=weight.shape, key=key) - 1) * 2.0**-23)

    def moved(draw: int) -> float:
        keys = iter(mx.random.split(mx.random.key(draw), len(flatten(model.parameters()))))
        weights = tree_map(lambda weight: nudge(weight, next(keys)), model.parameters())
        return logit_deviation(
            with_parameters(model, weights, lambda: logits_of(model, tokens)), logits, scale
        )

    return max(moved(draw) for draw in range(draws))


def cross_entropy(model: LanguageModel, tokens: mx.array) -> mx.array:
    """Mean CE in nats per scored token of tokens[:, 1:] given tokens[:, :-1], in float32."""
    inputs, targets = losses.split_rows(tokens)
    nats, count = losses.cross_entropy(model(inputs), targets.astype(mx.int32))
    return nats / count
