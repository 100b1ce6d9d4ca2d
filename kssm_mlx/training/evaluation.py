"""How well a model predicts held-out windows, and how much of that is due to what it remembers.

Deterministic: the windows are given, nothing is drawn, and no training state is seen or touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kssm_mlx.errors import DataError
from kssm_mlx.models.base import with_parameters
from kssm_mlx.training.losses import token_nats


def make_evaluator(model: nn.Module) -> Callable[..., dict[str, float]]:
    """`evaluate` for use again and again: compiled once, parameters an argument.

    The result is called as `evaluator(params, windows, bytes_per_token)`; params may be the fp32 masters.
    """
    score = _compiled_score(model)

    def evaluator(params: dict[str, Any], windows: Iterable, bytes_per_token: float) -> dict[str, float]:
        nats, tokens = _collect(lambda batch, resets: score(params, batch, resets), windows)
        return language_metrics(nats, tokens, bytes_per_token)

    return evaluator


def evaluate(model: nn.Module, windows: Iterable, bytes_per_token: float) -> dict[str, float]:
    """nats_per_token, se, perplexity, perplexity_se, bits_per_byte and tokens of `model` on `windows`.

    windows: an iterable of (tokens int [N, T+1], resets bool [N, T] or None), as `data.batches` gives them.
    bytes_per_token: UTF-8 bytes per token of this text.
    Raises: DataError when there is no token to score.
    """
    return make_evaluator(model)(model.parameters(), windows, bytes_per_token)


def context_gain(model: nn.Module, windows: Iterable) -> dict[str, float]:
    """What context is worth: nats per token seeing one token only, less nats per token in full context.

    Every position of a window becomes a sequence of its own, of length one, with a fresh state: an exact cut
    of the context for any model. A model that carries nothing across time gains exactly 0. The standard error
    `context_gain_se` is that of paired windows.
    """
    score, params = _compiled_score(model), model.parameters()
    windows = list(windows)
    full, tokens = _collect(lambda batch, resets: score(params, batch, resets), windows)
    alone, _ = _collect(lambda batch, resets: _score_alone(score, params, batch), windows)
    gain, se = ratio(alone - full, tokens)
    return {
        "nats_per_token": ratio(full, tokens)[0],
        "nats_one_token": ratio(alone, tokens)[0],
        "context_gain": gain,
        "context_gain_se": se,
    }


def language_metrics(nats: np.ndarray, tokens: np.ndarray, bytes_per_token: float) -> dict[str, float]:
    """The numbers of an evaluation from summed nats [N] and token counts [N] per window."""
    mean, se = ratio(nats, tokens)
    perplexity = math.exp(min(mean, 700.0))  # a float64 ends at e^709
    return {
        "nats_per_token": mean,
        "se": se,
        "perplexity": perplexity,
        "perplexity_se": perplexity * se,
        "bits_per_byte": mean / math.log(2) / bytes_per_token,
        "tokens": int(tokens.sum()),
    }


def ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """(Σ sums / Σ counts, its standard error over windows; nan for a single window, which has none).

    Source: Cochran 1977, Sampling Techniques, eq. 2.46, the ratio estimator; for equal counts it is the
    standard error of the mean.
    """
    total, n = counts.sum(), len(counts)
    if total == 0:
        raise DataError("no token to evaluate on; give a longer validation text or a smaller data.validation")
    mean = sums.sum() / total
    spread = np.square(sums - mean * counts).sum()
    return float(mean), float(np.sqrt(spread * n / (n - 1)) / total) if n > 1 else math.nan


def _compiled_score(model: nn.Module):
    """`score(params, tokens, resets) -> nats [N, T]`, zero where padded."""

    @mx.compile
    def score(params, tokens, resets):
        inputs, targets = mx.maximum(tokens[:, :-1], 0), tokens[:, 1:]
        out = with_parameters(model, params, lambda: model.forward(inputs, resets=resets))
        return token_nats(out.logits, targets)

    return score


def _score_alone(score, params, tokens: mx.array) -> mx.array:
    """`score` [N, T] where each input token is all that is seen."""
    pairs = mx.stack([tokens[:, :-1], tokens[:, 1:]], axis=-1).reshape(-1, 2)
    return score(params, pairs, None).reshape(tokens.shape[0], -1)


def _collect(score, windows: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Summed nats and token counts per window, float64 [N] each, summed outside fp32."""
    nats, counts = [np.empty(0)], [np.empty(0)]
    for tokens, resets in windows:
        scored = score(mx.array(tokens), None if resets is None else mx.array(resets))
        nats.append(np.array(scored, dtype=np.float64).sum(axis=1))
        counts.append((np.asarray(tokens)[:, 1:] >= 0).sum(axis=1).astype(np.float64))
    return np.concatenate(nats), np.concatenate(counts)
