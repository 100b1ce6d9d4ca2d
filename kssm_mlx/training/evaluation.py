"""How well a model predicts held-out windows, and how much of that is due to what it remembers.

Deterministic: the windows are given, nothing is drawn, and no training state is seen or touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kssm_mlx.errors import DataError
from kssm_mlx.metrics.language import evaluation
from kssm_mlx.models.base import Intervention, mode, with_parameters
from kssm_mlx.training.losses import chunk_for, chunked_token_nats, token_nats


def make_evaluator(
    model: nn.Module, *, intervention: Intervention | None = None, compile: bool = True
) -> Callable[..., dict[str, float]]:
    """`evaluate` for use again and again: compiled once, parameters an argument, in evaluation mode.

    The result is called as `evaluator(params, windows, bytes_per_token)`; params may be the fp32 masters.
    """
    score = _make_score(model, compile, intervention)

    def evaluator(params: dict[str, Any], windows: Iterable, bytes_per_token: float) -> dict[str, float]:
        nats = [score(params, *_arrays(tokens, resets)) for tokens, resets in windows]
        return language_metrics(_concatenated(nats), bytes_per_token)

    return evaluator


def evaluate(model: nn.Module, windows: Iterable, bytes_per_token: float) -> dict[str, float]:
    """nats_per_token, se, perplexity, perplexity_se, bits_per_byte and tokens of `model` on `windows`.

    windows: an iterable of (tokens int [N, T+1], resets bool [N, T] or None), as `data.batches` gives them.
    bytes_per_token: UTF-8 bytes per token of this text.
    Raises: ConfigError when there is no window; DataError for a window with padding.
    """
    return make_evaluator(model)(model.parameters(), windows, bytes_per_token)


def context_gain(model: nn.Module, windows: Iterable, *, compile: bool = True) -> dict[str, float]:
    """What context is worth: nats per token seeing one token only, less nats per token in full context.

    Every position of a window becomes a sequence of its own, of length one, with a fresh state: an exact cut
    of the context for any model. A model that carries nothing across time gains exactly 0. The standard error
    `context_gain_se` is that of paired windows.

    Raises: as `evaluate`.
    """
    score, params = _make_score(model, compile), model.parameters()
    full, alone = [], []
    for tokens, resets in windows:
        tokens, resets = _arrays(tokens, resets)
        full.append(score(params, tokens, resets))
        alone.append(score(params, _pairs(tokens), None).reshape(full[-1].shape))
    full, alone = _concatenated(full), _concatenated(alone)
    gain = evaluation((alone - full).mean(axis=-1))
    return {
        "nats_per_token": evaluation(full.mean(axis=-1)).loss.value,
        "nats_one_token": evaluation(alone.mean(axis=-1)).loss.value,
        "context_gain": gain.loss.value,
        "context_gain_se": gain.loss_se,
    }


def language_metrics(nats: np.ndarray, bytes_per_token: float) -> dict[str, float]:
    """The numbers of an evaluation from the nats [N, T] of every target; standard errors are over windows."""
    result = evaluation(nats.mean(axis=-1))
    return {
        "nats_per_token": result.loss.value,
        "se": result.loss_se,
        "perplexity": result.perplexity,
        "perplexity_se": result.perplexity_se,
        "bits_per_byte": result.loss.to_bits_per_byte(bytes_per_token).value,
        "tokens": nats.size,
    }


def _make_score(model: nn.Module, compile: bool, intervention: Intervention | None = None):
    """`score(params, tokens, resets) -> nats [N, T]`."""

    def score(params, tokens, resets):
        with mode(model, training=False):
            return with_parameters(model, params, lambda: _token_nats(model, tokens, resets, intervention))

    scored = mx.compile(score) if compile else score

    def evaluated(*arguments) -> np.ndarray:
        # One batch of logits in memory at a time; float64, so that the order of the sum does not matter.
        return np.array(scored(*arguments)).astype(np.float64)

    return evaluated


def _token_nats(model: nn.Module, tokens: mx.array, resets: mx.array | None, intervention) -> mx.array:
    """Of every target; where the vocabulary is large, never all logits at once."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    chunk = chunk_for(*inputs.shape, model.args.vocab_size) if hasattr(model, "hidden") else None
    if chunk is None:
        return token_nats(model.forward(inputs, None, intervention, resets=resets).logits, targets)
    hidden = model.hidden(inputs, None, intervention, resets=resets)[0]
    return chunked_token_nats(hidden, model.project, targets, chunk)


def _arrays(tokens, resets) -> tuple[mx.array, mx.array | None]:
    tokens = mx.array(tokens)
    if mx.any(tokens < 0).item():
        raise DataError("an evaluation window has padding (a token below zero); give windows that are full")
    return tokens, None if resets is None else mx.array(resets)


def _pairs(tokens: mx.array) -> mx.array:
    """Each input with its target, as windows of their own. Shapes: [N, T+1] -> [N T, 2]."""
    return mx.stack([tokens[:, :-1], tokens[:, 1:]], axis=-1).reshape(-1, 2)


def _concatenated(batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(batches) if batches else np.empty((0, 1))
