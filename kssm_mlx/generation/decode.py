"""Token by token in bounded memory: prefill in chunks, then one compiled step per token.

Rows of a batch never see each other. A shorter prompt is padded on the right and `lengths` keeps the padding
out of its cache; a row that has finished is frozen the same way, so that its state is the one it would have
had alone. The next step is started before the current token is looked at: the model never waits for Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from kssm_mlx.generation.sampling import NOTHING, Sampling, sample
from kssm_mlx.generation.state import GenerationState
from kssm_mlx.models.base import Cache, Intervention, LanguageModel, Output, training_mode

CHUNK = 512  # tokens per prefill call: enough to be efficient, few enough to bound the graph


class Step(NamedTuple):
    """One token per row, and where each row stands after it.

    Shapes: token [B] int32; logprob [B] fp32, nats, before any filter; active [B] bool, False in a row that
    has met a stop token and whose state no longer moves; observed, what was asked for of the pass that drew
    the token, `"block00/R" -> [B, units]`, and U -> [B], the entropy of the prediction as a share of ln V.
    """

    token: mx.array
    logprob: mx.array
    active: mx.array
    state: GenerationState
    observed: dict[str, mx.array]


def start(
    model: LanguageModel, rows: list[np.ndarray], seeds: Sequence[int], window: int, tokenizer_digest: str
) -> GenerationState:
    """The state after reading each row's tokens from a blank cache; every row has at least one token."""
    history = np.full((len(rows), window), NOTHING, dtype=np.int32)
    cache, pending = _read_prompts(model, model.make_cache(), rows)
    keys = mx.stack([mx.random.key(seed) for seed in seeds])
    return GenerationState(cache, pending, keys, _append_history(history, rows), tokenizer_digest)


def resume(
    model: LanguageModel, state: GenerationState, rows: list[np.ndarray], window: int
) -> GenerationState:
    """The state after reading more tokens, possibly none, in each row; the random numbers go on."""
    unread = [np.concatenate([[p], row]) for p, row in zip(np.array(state.pending), rows)]
    cache, pending = _read_prompts(model, state.cache, unread)
    missing = max(window - state.history.shape[1], 0)
    history = np.pad(np.array(state.history), [(0, 0), (missing, 0)], constant_values=NOTHING)[:, -window:]
    return replace(state, cache=cache, pending=pending, history=_append_history(history, rows))


def prefill(model: LanguageModel, cache: Cache, rows: list[np.ndarray], chunk: int = CHUNK) -> Cache:
    """The cache after every row's tokens, read `chunk` at a time; some rows may be empty.

    Only caches are evaluated, so the output head, the largest product of a small model, never runs.
    """
    lengths = np.array([len(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max()), dtype=np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    for begin in range(0, padded.shape[1], chunk):
        tokens = padded[:, begin : begin + chunk]
        left = np.clip(lengths - begin, 0, tokens.shape[1]).astype(np.int32)
        full = (left == tokens.shape[1]).all()
        cache = _forward(model, mx.array(tokens), cache, None if full else mx.array(left)).cache
        mx.eval(cache)
    return cache


def decode(
    model: LanguageModel,
    state: GenerationState,
    sampling: Sampling,
    *,
    vocab_size: int,
    stop_tokens: Sequence[int],
    max_tokens: int,
    intervention: Intervention | None = None,
    observe: Sequence[str] = (),
) -> Iterator[Step]:
    """Steps until every row has met one of `stop_tokens`, `max_tokens` at most.

    intervention: of the passes that draw a token; what was read before is as it was. observe: quantities of
    the trace, and U, that each step brings along.
    """
    step = _Stepper(_step_function(model, sampling, vocab_size, stop_tokens, intervention, observe))
    following = step(state, mx.ones(len(state), dtype=mx.bool_))
    for i in range(max_tokens):
        current = following
        # One step ahead: the device computes the next token while this one is being written.
        if i + 1 < max_tokens:
            following = step(current.state, current.active)
        yield current
        if not mx.any(current.active).item():
            return


class _Stepper:
    """The step as a function of (state, active), compiled as soon as the shapes of the cache stand still.

    The first token changes a blank cache into arrays, and the keys and values of attention grow for ever:
    compiling those would trace anew at every token and keep every trace.
    """

    def __init__(self, function: Callable[..., tuple]):
        self._eager, self._compiled = function, mx.compile(function)
        self._steady = False

    def __call__(self, state: GenerationState, active: mx.array) -> Step:
        function = self._compiled if self._steady else self._eager
        token, logprob, still, cache, keys, history, observed = function(
            state.cache, state.pending, state.keys, state.history, active
        )
        mx.async_eval(token, logprob, still, cache, keys, history, observed)
        self._steady = _shapes(cache) == _shapes(state.cache)
        state = replace(state, cache=cache, pending=token, keys=keys, history=history)
        return Step(token, logprob, still, state, observed)


def _step_function(
    model: LanguageModel,
    sampling: Sampling,
    vocab_size: int,
    stop_tokens: Sequence[int],
    intervention: Intervention | None,
    observe: Sequence[str],
) -> Callable[..., tuple]:
    """The arithmetic of one token on plain arrays, which is what can be compiled.

    `vocab_size` is the tokenizer's: an embedding padded for speed has columns that stand for no token.
    """

    stops = mx.array(list(stop_tokens), dtype=mx.int32)[None]

    def step(cache, pending, keys, history, active):
        # A row that has ended reads nothing more, so its state stays where its text ends.
        lengths = active.astype(mx.int32) if pending.shape[0] > 1 else None
        output = _forward(model, pending[:, None], cache, lengths, intervention)
        logits = output.logits[:, -1, :vocab_size].astype(mx.float32)
        token, new_keys = sample(logits, history, keys, sampling, output.trace)
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        logprob = mx.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
        new_history = mx.concatenate([history[:, 1:], token[:, None]], axis=-1)
        token = mx.where(active, token, pending)
        # Its random numbers stand still too: a continued text does not depend on how long others ran on.
        keys = mx.where(active[:, None], new_keys, keys)
        history = mx.where(active[:, None], new_history, history)
        still = active & mx.all(token[:, None] != stops, axis=-1) if stops.size else active
        return token, logprob, still, output.cache, keys, history, _observe(output.trace, log_p, observe)

    return step


def _observe(trace: dict[str, Any], log_p: mx.array, names: Sequence[str]) -> dict[str, mx.array]:
    """The quantities at the last token, fp32. Shapes: log_p [B, V] -> [B, units], U [B]."""
    found = {
        name: value[:, -1].astype(mx.float32)
        for name, value in trace.items()
        if name.rpartition("/")[2] in names
    }
    if "U" in names:
        found["U"] = -mx.sum(mx.exp(log_p) * log_p, axis=-1) / math.log(log_p.shape[-1])
    return found


def _forward(
    model: LanguageModel,
    tokens: mx.array,
    cache: Cache,
    lengths: mx.array | None,
    intervention: Intervention | None = None,
) -> Output:
    """In evaluation mode: what a model draws in training is no part of its text."""
    with training_mode(model, False):
        return model.forward(tokens, cache, intervention, lengths=lengths)


def _read_prompts(model: LanguageModel, cache: Cache, rows: list[np.ndarray]) -> tuple[Cache, mx.array]:
    """Read all but the last token of each row; the last one is pending: the first step reads it."""
    cache = prefill(model, cache, [row[:-1] for row in rows])
    return cache, mx.array(np.array([row[-1] for row in rows], dtype=np.int32))


def _append_history(history: np.ndarray, rows: list[np.ndarray]) -> mx.array:
    W = history.shape[1]
    latest = [np.concatenate([old, row])[-W:] for old, row in zip(history, rows)]
    return mx.array(np.stack(latest).astype(np.int32))


def _shapes(cache: Cache) -> list[tuple[str, tuple[int, ...] | None]]:
    return [(name, getattr(array, "shape", None)) for name, array in tree_flatten(cache)]
