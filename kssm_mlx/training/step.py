"""One step of training: a pure function (state, tokens, resets) -> (state, metrics), compiled once.

    1. gradient   of the summed nats of the rows, with the number of tokens they are the sum of
    2. sum        over the micro-batches, then one division by the count: the gradient of the whole batch
    3. clip       by the global norm
    4. update     by AdamW at the learning rate of this step, unless the gradient is not finite

Without accumulation all four are one compiled function. With it, 1 is compiled for one micro-batch and
evaluated piece by piece, so that memory holds the activations of one piece and K pieces cost one compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Cache, head_of, with_parameters
from kssm_mlx.training import observables, optim
from kssm_mlx.training.losses import chunk_for, chunked_cross_entropy, cross_entropy
from kssm_mlx.training.recipe import Train
from kssm_mlx.training.schedules import schedule
from kssm_mlx.training.state import TrainState

Step = Callable[[TrainState, mx.array, mx.array | None], tuple[TrainState, dict[str, mx.array]]]


class Totals(NamedTuple):
    """What micro-batches add up: gradient of the summed nats, the nats, the tokens, averaged observables."""

    grads: dict[str, Any]
    nats: mx.array
    tokens: mx.array
    observed: dict[str, mx.array]


def make_step(model: nn.Module, train: Train, *, compile: bool = True) -> Step:
    """The step of this model under this recipe: `step(state, tokens, resets) -> (state, metrics)`.

    metrics: arrays [] by name: loss (nats per token), grad_norm (before clipping), lr, tokens, skipped (1
    when the gradient was not finite and nothing moved), skips (how many in a row), and `R_block00`,
    `psi_block00`, `h_block00`, `lyapunov_block00` where the model's trace has them.

    Shapes:
        tokens int32 [B, T+1], below zero where padded; resets bool [B, T] or None. A new shape, or None in
        place of an array, compiles anew.
    Raises: ConfigError when the model cannot do what the recipe asks.
    """
    _use_checkpoints(model, train)
    compiled = mx.compile if compile else lambda f: f
    gradient, update = make_gradient(model, train), make_update(model, train)
    if train.accumulation > 1:
        gradient, update = accumulated(compiled(gradient), train.accumulation), compiled(update)

    def step(state: TrainState, tokens: mx.array, resets: mx.array | None = None):
        totals, carry = gradient(state.params, tokens, resets, state.carry)
        return update(state._replace(carry=carry), totals)

    return step if train.accumulation > 1 else compiled(step)


def make_gradient(model: nn.Module, train: Train):
    """`gradient(params, tokens, resets, carry) -> (Totals, carry)` of one batch of rows."""
    lowered = _compute_copy(model, train)

    def loss(params, tokens, resets, carry):
        inputs, targets = mx.maximum(tokens[:, :-1], 0), tokens[:, 1:]
        nats, count, cache, trace = _nats(model, lowered(params), inputs, targets, carry, resets)
        carry = _handed_off(model, carry, cache) if train.hand_off else None
        return nats, count, observables.averages(trace), carry

    def gradient(params, tokens, resets, carry):
        (nats, count, observed, carry), grads = mx.value_and_grad(loss)(params, tokens, resets, carry)
        return Totals(grads, nats, count, observed), carry

    return gradient


def _nats(model: nn.Module, params, inputs, targets, carry, resets):
    """(summed nats, tokens, cache, trace); where the vocabulary is large, never all logits at once."""
    chunk = chunk_for(*inputs.shape, model.args.vocab_size) if hasattr(model, "hidden") else None
    if chunk is None:
        out = with_parameters(model, params, lambda: model.forward(inputs, carry, resets=resets))
        return *cross_entropy(out.logits, targets), out.cache, out.trace
    hidden, cache, trace = with_parameters(model, params, lambda: model.hidden(inputs, carry, resets=resets))

    def project(part, head):
        return with_parameters(model, head, lambda: model.project(part))

    return *chunked_cross_entropy(hidden, head_of(model, params), project, targets, chunk), cache, trace


def accumulated(gradient, pieces: int):
    """`gradient` summed over `pieces` equal groups of rows, one in memory at a time."""

    def total(params, tokens, resets, carry):
        rows, sums, carries = tokens.shape[0] // pieces, None, []
        for i in range(pieces):
            piece = slice(i * rows, (i + 1) * rows)
            totals, left = gradient(params, *_rows([tokens, resets, carry], piece))
            sums = totals if sums is None else tree_map(mx.add, sums, totals)
            mx.eval(sums, left)
            carries.append(left)
        observed = tree_map(lambda a: a / pieces, sums.observed)
        joined = None if left is None else tree_map(lambda *parts: mx.concatenate(parts), *carries)
        return sums._replace(observed=observed), joined

    return total


def _rows(tree, piece: slice):
    return tree_map(lambda a: None if a is None else a[piece], tree)


def make_update(model: nn.Module, train: Train):
    """`update(state, totals) -> (state, metrics)`: divide, clip, step, count."""
    learning_rate = schedule(train)
    decays = optim.decay_mask(model.trainable_parameters(), model.no_decay)
    adam = optim.AdamW(train.beta1, train.beta2, train.epsilon, train.weight_decay, decays)

    def update(state: TrainState, totals: Totals):
        count = mx.maximum(totals.tokens, 1)
        grads, norm = optim.clip(tree_map(lambda g: g / count, totals.grads), train.clip)
        lr, finite = learning_rate(state.step), mx.isfinite(norm)
        params, opt = optim.update_if(finite, adam, state.params, grads, state.opt, lr)
        metrics = {
            "loss": totals.nats / count,
            "grad_norm": norm,
            "lr": lr,
            "tokens": totals.tokens,
            "skipped": 1 - finite.astype(mx.int32),
            "skips": opt["skips"],
            **observables.summary(totals.observed),
        }
        key = mx.random.split(state.key)[0]
        return TrainState(params, opt, key, state.step + 1, state.cursor + 1, state.carry), metrics

    return update


def _compute_copy(model: nn.Module, train: Train):
    """params -> params in the precision of the computation; the master weights stay fp32."""
    if train.precision == "float32":
        return lambda params: params
    lowers = model.cast_predicate

    def cast(name: str, p: mx.array) -> mx.array:
        return p.astype(mx.bfloat16) if lowers(name) and mx.issubdtype(p.dtype, mx.floating) else p

    return lambda params: tree_map_with_path(cast, params)


def _handed_off(model: nn.Module, before: Cache | None, after: Cache) -> Cache:
    """The cache for the next batch, refused while tracing if it grows: each step would compile anew."""
    shapes = [[a.shape for _, a in tree_flatten(cache)] for cache in (before, after) if cache is not None]
    if shapes[0] != shapes[-1]:
        raise ConfigError(
            f"hand_off needs a state of fixed size, but the cache of {model.model_type} goes from "
            f"{shapes[0]} to {shapes[-1]} in one batch; set train.hand_off = false"
        )
    return after


def _use_checkpoints(model: nn.Module, train: Train) -> None:
    if hasattr(model, "checkpoint_blocks"):
        model.checkpoint_blocks = train.checkpoint_blocks
    elif train.checkpoint_blocks:
        raise ConfigError(
            f"{model.model_type} has no gradient checkpointing; set train.checkpoint_blocks = false "
            "and use train.accumulation to save memory"
        )
