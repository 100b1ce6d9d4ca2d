"""The ladder a language model climbs: what counting the last one, two or three tokens already predicts.

Every rung interpolates with the one below it after Witten and Bell,

    p(x | c) = (n(c, x) + t(c) p(x | shorter c)) / (n(c) + t(c)),

where t(c) is how many different tokens followed c. It has no parameter to choose, so nothing is fitted on the
validation text, and no token is impossible. Counts are sorted tables of what occurs: a vocabulary of 50,000
costs memory for the n-grams of the text, not for its square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from kssm_mlx.errors import DataError

LONGEST = 2  # tokens of context of the highest rung, so the first two tokens are scored by no rung


class _Sample(NamedTuple):
    """Tokens and, as one number each, what came before them. Shapes: both [N]."""

    contexts: np.ndarray
    tokens: np.ndarray


def ngram_ladder(
    train: np.ndarray,
    validation: np.ndarray,
    vocab_size: int,
    period: int | None = None,
    scored: np.ndarray | None = None,
    labels: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """Validation cross entropy of n-gram models of the training tokens, in nats/token.

    Keys: uniform, unigram, bigram, trigram, all scored on the same tokens (from the third on), and
    bigram_entropy, the conditional entropy of the training tokens themselves (no smoothing). With `period`
    also position_bigram, which knows the position modulo `period`: all a model can learn from its place.
    scored: which validation tokens count; all unless given. labels: of both sides, what is asked for at each
    place in place of the token there, below zero where nothing is.

    Shapes: train [N], validation [M], ids below vocab_size; scored bool [M]; labels [N], [M].
    Raises: DataError for fewer than 3 tokens on either side, ids outside the vocabulary, and no scored token.
    Source: Witten, Bell 1991, method C.
    """
    sides = [_require_ids(train, "training", vocab_size), _require_ids(validation, "validation", vocab_size)]

    def rung(contexts: Callable[[np.ndarray], np.ndarray], lower: np.ndarray) -> np.ndarray:
        counted, asked = (
            _Sample(contexts(ids), own[LONGEST:]) for ids, own in zip(sides, answers, strict=True)
        )
        known = answers[0][LONGEST:] >= 0
        return _witten_bell(_Sample(*(part[known] for part in counted)), asked, lower, base)

    counts = np.ones(len(sides[1]) - LONGEST, bool) if scored is None else np.asarray(scored, bool)[LONGEST:]
    if scored is not None and not counts.any():
        raise DataError("none of the validation tokens from the third on is scored; give rows with targets")
    # Ids without gaps, so that three of them fit into one int64 whatever the vocabulary is.
    asked_for = [np.asarray(own, np.int64) for own in labels] if labels else sides
    dense = np.unique(np.concatenate([*sides, *(own[own >= 0] for own in asked_for)]))
    answers = [np.where(own >= 0, np.searchsorted(dense, own), -1) for own in asked_for]
    sides, base = [np.searchsorted(dense, ids) for ids in sides], max(dense.size, 2)
    lower = np.full(sides[1].size - LONGEST, 1 / vocab_size)
    ladder = {"uniform": math.log(vocab_size)}
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        lower = rung(partial(_encode_context, order=order, vocab_size=base), lower)
        ladder[name] = _mean_nats(lower[counts])
        if name == "bigram" and period:
            placed = partial(_encode_place, vocab_size=base, period=period)
            ladder["position_bigram"] = _mean_nats(rung(placed, lower)[counts])
    return {**ladder, "bigram_entropy": bigram_entropy(sides[0], base)}


def bigram_entropy(ids: np.ndarray, vocab_size: int) -> float:
    """H(x_t | x_{t-1}) of the counted bigrams, nats/token: one token of context predicts no better here.

    Shapes: ids [N].
    """
    ids = np.asarray(ids, dtype=np.int64)
    return _entropy(ids[:-1] * vocab_size + ids[1:]) - _entropy(ids[:-1])


def _witten_bell(counted: _Sample, asked: _Sample, lower: np.ndarray, vocab_size: int) -> np.ndarray:
    """p(token | context) of the asked sample by the counts of the other; `lower` is p of the rung below."""
    pairs, pair_counts = np.unique(counted.contexts * vocab_size + counted.tokens, return_counts=True)
    known, first, kinds = np.unique(pairs // vocab_size, return_index=True, return_counts=True)
    n_cx = _look_up(pairs, pair_counts, asked.contexts * vocab_size + asked.tokens)
    n_c = _look_up(known, np.add.reduceat(pair_counts, first), asked.contexts)
    t_c = _look_up(known, kinds, asked.contexts)
    # A context that was never counted has no say: the rung below stands.
    return np.divide(n_cx + t_c * lower, n_c + t_c, out=lower.copy(), where=n_c > 0)


def _look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The value of each asked key in a sorted table, 0 where it is absent."""
    at = np.searchsorted(keys, asked).clip(max=keys.size - 1)
    return np.where(keys[at] == asked, values[at], 0)


def _encode_context(ids: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """One number for the `order` tokens before each token from the third on."""
    code = np.zeros(ids.size - LONGEST, np.int64)
    for lag in range(order, 0, -1):
        code = code * vocab_size + ids[LONGEST - lag : ids.size - lag]
    return code


def _encode_place(ids: np.ndarray, vocab_size: int, period: int) -> np.ndarray:
    """One number for the token before each token from the third on and its position modulo `period`."""
    return np.arange(LONGEST, ids.size) % period * vocab_size + _encode_context(ids, 1, vocab_size)


def _mean_nats(probabilities: np.ndarray) -> float:
    return float(-np.log(probabilities).mean())


def _entropy(codes: np.ndarray) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _require_ids(ids: np.ndarray, name: str, vocab_size: int) -> np.ndarray:
    """The ids as int64. One beyond the vocabulary would be counted as another bigram, so it is refused."""
    ids = np.asarray(ids, dtype=np.int64)
    if ids.size <= LONGEST:
        raise DataError(f"{ids.size} {name} tokens are too few for trigrams; give at least {LONGEST + 1}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise DataError(f"{name} tokens run from {ids.min()} to {ids.max()}; expected 0 to {vocab_size - 1}")
    return ids
