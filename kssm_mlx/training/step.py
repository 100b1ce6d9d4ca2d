"""One step of training: a pure function (state, tokens, resets) -> (state, metrics), compiled once.

    1. gradient   of the summed nats of the rows (and of what terms add), with the number of tokens
    2. sum        over the micro-batches, then one division by the count: the gradient of the whole batch
    3. clip       by the norm of a component, where it has a limit, and by the global norm
    4. update     by the optimizer at the learning rate of this step, unless the gradient is not finite

Without accumulation all four are one compiled function. With it, 1 is compiled for one micro-batch and
evaluated piece by piece, so that memory holds the activations of one piece and K pieces cost one compilation.
Processes that train together are pieces that are computed at once: N of them with one piece each take the
step that one process takes with accumulation N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map, tree_map_with_path, tree_unflatten

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.models.base import (
    Cache,
    Intervention,
    LanguageModel,
    flatten,
    head_of,
    training_mode,
    with_parameters,
)
from kssm_mlx.ops.dispatch import with_second_try
from kssm_mlx.training import loss_terms, observables
from kssm_mlx.training.loss_terms import Term, isolate_node
from kssm_mlx.training.losses import chunk_for, chunked_cross_entropy, cross_entropy, split_rows
from kssm_mlx.training.optimizers import gradients, updates
from kssm_mlx.training.optimizers.average import follow
from kssm_mlx.training.parallel.ranks import ALONE, Ranks
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.schedules import schedule
from kssm_mlx.training.state import TrainState, buffers_of, with_knobs

Step = Callable[[TrainState, mx.array, mx.array | None], tuple[TrainState, dict[str, mx.array]]]


class Totals(NamedTuple):
    """What micro-batches add up: the gradient of the objective (summed nats, and what terms add to them), the
    nats, the tokens, each term times its tokens, averaged observables; and the buffers, as the last one left
    them.
    """

    grads: dict[str, Any]
    nats: mx.array
    tokens: mx.array
    terms: dict[str, mx.array]
    observed: dict[str, mx.array]
    buffers: dict[str, mx.array] | None = None


def make_step(
    model: LanguageModel,
    train: Train,
    *,
    loss: Sequence[Term] | None = None,
    masks: dict[str, mx.array] | None = None,
    intervention: Intervention | None = None,
    monitor: bool = False,
    compile: bool = True,
    ranks: Ranks = ALONE,
) -> Step:
    """The step of this model under this recipe: `step(state, tokens, resets) -> (state, metrics)`.

    loss: what is added to the cross-entropy (training/loss_terms.py). masks: parameter -> bool array that
    broadcasts to it; where it is False nothing moves, under decay neither. intervention: held in every
    forward pass. monitor: observe U, the phases and the frequencies as well. ranks: who take the step
    together, each on its own rows, which are what it is given.

    metrics: arrays [] by name: loss (cross-entropy, nats per token), `term_<name>` and the parts of each
    term, grad_norm (before clipping), `grad_rms_<tag>` (`gradients.component_rms`), lr, tokens, skipped (1
    when the gradient was not finite and nothing moved), skips (how many in a row), and the columns of
    `training.observables` such as `R_block00`.

    Shapes:
        tokens int32 [B, T+1], below zero where padded; resets bool [B, T] or None. A new shape, or None in
        place of an array, compiles anew.
    Raises: ConfigError when the model cannot do what the recipe asks.
    """
    _use_checkpoints(model, train)
    require_shares(model, train, ranks)
    build = partial(
        _build_step, model, train, ranks, loss=loss, masks=masks, intervention=intervention, monitor=monitor
    )
    return with_second_try(partial(build, mx.compile if compile else lambda f: f))


def _build_step(model, train, ranks: Ranks, compiled, *, loss, masks, intervention, monitor) -> Step:
    gradient = make_gradient(model, train, loss=loss, intervention=intervention, monitor=monitor)
    update = make_update(model, train, masks=masks, monitor=monitor)
    in_pieces = train.accumulation > 1 or ranks.size > 1
    if in_pieces:
        gradient = accumulate_gradients(compiled(gradient), count_pieces(train, ranks), ranks)
        update = compiled(update)

    def step(state: TrainState, tokens: mx.array, resets: mx.array | None = None):
        _, noise = mx.random.split(state.key)  # `update` keeps the other half
        totals, carry = gradient(state.params, tokens, resets, state.carry, state.untrained, noise)
        return update(state._replace(carry=carry), totals)

    return step if in_pieces else compiled(step)


def make_gradient(
    model: LanguageModel,
    train: Train,
    *,
    loss: Sequence[Term] | None = None,
    intervention: Intervention | None = None,
    monitor: bool = False,
):
    """`gradient(params, tokens, resets, carry, untrained, key) -> (Totals, carry)` of one batch of rows.

    untrained: as in `TrainState`. key: what a model with `stochastic = True` draws its noise from; without
    one, MLX's global stream.
    """
    lowered, loss = _compute_copy(model, train), loss or ()
    score = make_score(model, intervention, monitor=monitor, keep_logits=any(t.reads_logits for t in loss))

    def objective(params, tokens, resets, carry, untrained, key):
        inputs, targets = split_rows(tokens)
        own = with_knobs(lowered(params), untrained)
        nats, count, logits, cache, trace, buffers = score(own, inputs, targets, carry, resets, key)
        terms = {k: v * count for k, v in loss_terms.compute_columns(loss, logits, targets, trace).items()}
        total = nats + sum(v for k, v in terms.items() if k.startswith("term_"))
        carry = _require_fixed_size(model, carry, cache) if train.hand_off else None
        return total, nats, count, terms, observables.average_observables(trace), buffers, carry

    def gradient(params, tokens, resets, carry, untrained=None, key=None):
        arguments = params, tokens, resets, carry, untrained or {}, key
        with _trace_of_means(model, not loss):
            # A block that is computed again leaves traced parameters in the model.
            found, grads = with_parameters(model, {}, lambda: mx.value_and_grad(objective)(*arguments))
        _, nats, count, terms, observed, buffers, carry = found
        return Totals(grads, nats, count, terms, observed, buffers), carry

    return gradient


def make_score(model: LanguageModel, intervention: Intervention | None, *, monitor: bool, keep_logits: bool):
    """`score(params, inputs, targets, carry, resets, key) -> (nats, tokens, logits, cache, trace, buffers)`.

    Where the vocabulary is large, never all logits at once: they are None then, unless `keep_logits`.
    """
    stochastic = getattr(model, "stochastic", False) or (intervention is not None and intervention.stochastic)

    def call(method, params, inputs, carry, resets, key):
        options = {"resets": resets, "key": key} if stochastic else {"resets": resets}

        def run():
            return *method(inputs, carry, intervention, **options), buffers_of(model)

        with training_mode(model, training=True):
            return with_parameters(model, params, run)

    def score(params, inputs, targets, carry, resets, key):
        (B, T), chunked = inputs.shape, hasattr(model, "hidden")
        chunk = chunk_for(B, T, model.args.vocab_size) if chunked else None
        if chunk is None or keep_logits:
            logits, cache, trace, buffers = call(model.forward, params, inputs, carry, resets, key)
            watched = (
                {"U": observables.uncertainty(isolate_node(logits), isolate_node(targets))} if monitor else {}
            )
            return *cross_entropy(logits, targets), logits, cache, {**trace, **watched}, buffers
        hidden, cache, trace, buffers = call(model.hidden, params, inputs, carry, resets, key)

        def project(part, head):
            return with_parameters(model, head, lambda: model.project(part))

        # What is frozen gets no gradient, and the model has it.
        trained = flatten(params).keys()
        kept = [(name, a) for name, a in flatten(head_of(model, params)).items() if name in trained]
        head = tree_unflatten(kept) if kept else {}
        if monitor:
            trace = {**trace, "U": observables.chunked_uncertainty(hidden, head, project, targets, chunk)}
        return *chunked_cross_entropy(hidden, head, project, targets, chunk), None, cache, trace, buffers

    return score


def count_pieces(train: Train, ranks: Ranks) -> int:
    """The pieces that each rank computes its rows in: none has more rows than train.accumulation says."""
    return -(-train.accumulation // ranks.size)


def require_shares(model: LanguageModel, train: Train, ranks: Ranks) -> None:
    """Raises: ConfigError for a batch that the ranks do not divide, and a model they cannot hold together."""
    pieces = count_pieces(train, ranks) * ranks.size
    if ranks.size > 1 and train.batch_size % pieces:
        parts = "" if pieces == ranks.size else f", in {pieces // ranks.size} pieces each"
        raise ConfigError(
            f"train.batch_size {train.batch_size} cannot be divided among {ranks.size} processes{parts}; "
            f"make it a multiple of {pieces}, or start another number of processes"
        )
    if ranks.size > 1 and (names := getattr(model, "buffers", ())):
        raise ConfigError(
            f"{model.model_type} keeps {names[0]}, which every forward pass replaces and processes would not "
            "share; train it in one process"
        )


def accumulate_gradients(gradient, pieces: int, ranks: Ranks = ALONE):
    """`gradient` summed over `pieces` equal groups of rows, one in memory at a time, and over the ranks."""

    def total(params, tokens, resets, carry, untrained, key):
        rows, sums, carries = tokens.shape[0] // pieces, None, []
        # The noise of one process that takes all of these pieces, one after the other.
        keys = mx.random.split(key, pieces * ranks.size)[ranks.rank * pieces :]
        for i in range(pieces):
            piece = slice(i * rows, (i + 1) * rows)
            totals, left = gradient(params, *_take_rows([tokens, resets, carry], piece), untrained, keys[i])
            sums = totals if sums is None else tree_map(mx.add, sums, totals)
            sums, untrained = sums._replace(buffers=totals.buffers), {**untrained, **totals.buffers}
            # Now, or the graphs of all pieces would be in memory together.
            mx.eval(sums, left)
            carries.append(left)
        assert sums is not None  # there is at least one piece
        sums = ranks.sum(sums._replace(buffers={}))._replace(buffers=sums.buffers)
        observed = tree_map(lambda a: a / (pieces * ranks.size), sums.observed)
        joined = None if left is None else tree_map(lambda *parts: mx.concatenate(list(parts)), *carries)
        return sums._replace(observed=observed), joined

    return total


def _take_rows(tree, piece: slice):
    return tree_map(lambda a: None if a is None else a[piece], tree)


def make_update(
    model: LanguageModel, train: Train, *, masks: dict[str, mx.array] | None = None, monitor: bool = False
):
    """`update(state, totals) -> (state, metrics)`: divide, clip, step, count."""
    learning_rate, optimizer = schedule(train), updates.make_optimizer(model, train)
    hold = _make_hold(masks or {}, flatten(model.trainable_parameters()))

    def update(state: TrainState, totals: Totals):
        # A batch of padding alone moves nothing, in place of 0 / 0.
        count = mx.maximum(totals.tokens, 1)
        # Before the norm is taken: what does not move must not shrink the rest by the clip.
        grads = hold(tree_map(lambda g: g / count, totals.grads), None)
        rms = gradients.component_rms(model, grads, train.component_gradients)
        grads, norm = gradients.clip_gradient(grads, train.clip, optimizer.limits)
        lr, finite = learning_rate(state.step) * state.rate, mx.isfinite(norm)
        params, opt = updates.update_if(finite, optimizer, state.params, grads, state.opt, lr)
        left = {
            name: mx.where(finite, new, state.buffers[name]) for name, new in (totals.buffers or {}).items()
        }
        metrics = {
            "loss": totals.nats / count,
            **tree_map(lambda term: term / count, totals.terms),
            "grad_norm": norm,
            **rms,
            "lr": lr,
            "tokens": totals.tokens,
            "skipped": 1 - finite.astype(mx.int32),
            "skips": opt["skips"],
            **observables.summarize_trace(totals.observed),
            **(observables.average_over_blocks(totals.observed, state.params) if monitor else {}),
        }
        # And again here: weight decay moves what has no gradient.
        params = hold(params, state.params)
        average = state.average
        if average is not None and train.ema is not None:
            average = updates.choose(finite, follow(average, params, train.ema, opt["count"]), average)
        return state._replace(
            params=params,
            opt=opt,
            average=average,
            buffers={**state.buffers, **left},
            key=mx.random.split(state.key)[0],
            step=state.step + 1,
            cursor=state.cursor + 1,
        ), metrics

    return update


def _make_hold(masks: dict[str, mx.array], params: dict[str, mx.array]):
    """(new, old) -> new where the masks let it move and old elsewhere; an old of None counts as zero.

    Raises: ConfigError for a mask of what is not trained, or of another shape.
    """
    for name, mask in masks.items():
        if name not in params:
            raise ConfigError(f"a mask for {name!r}, which is not trained{nearest(name, params)}")
        try:
            mx.broadcast_to(mask, params[name].shape)
        except ValueError:
            shapes = f"has shape {mask.shape}, which does not broadcast to its {params[name].shape}"
            raise ConfigError(f"the mask for {name} {shapes}") from None

    def hold(new: dict[str, Any], old: dict[str, Any] | None):
        kept = flatten(old) if old else dict.fromkeys(masks, 0.0)

        def keep_masked(name: str, moved: mx.array) -> mx.array:
            return mx.where(masks[name], moved, kept[name]) if name in masks else moved

        return tree_map_with_path(keep_masked, new) if masks else new

    return hold


def _compute_copy(model: LanguageModel, train: Train):
    """params -> params in the precision of the computation; the master weights stay fp32."""
    if train.precision == "float32":
        return lambda params: params
    lowers = model.cast_predicate

    def cast(name: str, p: mx.array) -> mx.array:
        return p.astype(mx.bfloat16) if lowers(name) and mx.issubdtype(p.dtype, mx.floating) else p

    return lambda params: tree_map_with_path(cast, params)


def _require_fixed_size(model: LanguageModel, before: Cache | None, after: Cache) -> Cache:
    """The cache for the next batch, refused while tracing if it grows: each step would compile anew."""
    shapes = [[a.shape for a in flatten(cache).values()] for cache in (before, after) if cache is not None]
    if shapes[0] != shapes[-1]:
        raise ConfigError(
            f"hand_off needs a state of fixed size, but the cache of {model.model_type} goes from "
            f"{shapes[0]} to {shapes[-1]} in one batch; set train.hand_off = false"
        )
    return after


@contextmanager
def _trace_of_means(model: LanguageModel, alone: bool) -> Iterator[None]:
    """While a step is traced whose loss reads no trace, blocks that are computed again give means alone."""
    if not hasattr(model, "checkpoint_means"):
        yield
        return
    model.checkpoint_means = alone
    try:
        yield
    finally:
        model.checkpoint_means = False


def _use_checkpoints(model: LanguageModel, train: Train) -> None:
    if hasattr(model, "checkpoint_blocks"):
        model.checkpoint_blocks = train.checkpoint_blocks
    elif train.checkpoint_blocks:
        raise ConfigError(
            f"{model.model_type} has no gradient checkpointing; set train.checkpoint_blocks = false "
            "and use train.accumulation to save memory"
        )
