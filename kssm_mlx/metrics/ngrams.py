"""The ladder a language model climbs: what counting the last one, two or three tokens already predicts.

Every rung interpolates with the one below it after Witten and Bell,

    p(x | c) = (n(c, x) + t(c) p(x | shorter c)) / (n(c) + t(c)),

where t(c) is how many different tokens followed c. It has no parameter to choose, so nothing is fitted on the
validation text, and no token is impossible.

The training tokens are read in blocks, and of them is counted only what the scored tokens ask for: how often
their contexts came, and how often with their token, are two numbers for each. The different tokens behind a
context are a sorted table of n-grams of at most `MOST`. Where there are more, those of the last contexts are
left for another reading: memory is bounded, the numbers are exact, and what grows is time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from kssm_mlx.data.shards import Ids, read_blocks
from kssm_mlx.errors import DataError

LONGEST = 2  # tokens of context of the highest rung, so the first two tokens are scored by no rung
BLOCK = 1 << 20  # training tokens counted at once
MOST = 1 << 24  # different n-grams kept at once, 8 bytes each and as much again for what is added


class _Sample(NamedTuple):
    """Tokens and, as one number each, what came before them. Shapes: both [N]."""

    contexts: np.ndarray
    tokens: np.ndarray


class _Side(NamedTuple):
    """Ids, and what is asked for at each place, below zero where nothing is. Shapes: both [N]."""

    ids: Ids
    answers: Ids


def ngram_ladder(
    train: Ids,
    validation: np.ndarray,
    vocab_size: int,
    period: int | None = None,
    scored: np.ndarray | None = None,
    labels: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """Validation cross entropy of n-gram models of the training tokens, in nats/token.

    Keys: uniform, unigram, bigram, trigram, all scored on the same tokens (from the third on). With `period`
    also position_bigram, which knows the position modulo `period`: all a model can learn from its place.
    train: mapped files are read in blocks; what is counted on them grows with the validation tokens.
    scored: which validation tokens count; all unless given. labels: of both sides, what is asked for at each
    place in place of the token there, below zero where nothing is.

    Shapes: train [N], validation [M], ids below vocab_size; scored bool [M]; labels [N], [M].
    Raises: DataError for fewer than 3 tokens on either side, ids outside the vocabulary, and no scored token.
    Source: Witten, Bell 1991, method C.
    """
    different = [_list_ids(train, "training", vocab_size), _list_ids(validation, "validation", vocab_size)]
    counts = (
        np.ones(len(validation) - LONGEST, bool) if scored is None else np.asarray(scored, bool)[LONGEST:]
    )
    if scored is not None and not counts.any():
        raise DataError("none of the validation tokens from the third on is scored; give rows with targets")
    if labels:
        different += [found[found >= 0] for found in map(_find_different, labels)]
    # Ids without gaps, so that three of them fit into one int64 whatever the vocabulary is.
    dense = np.unique(np.concatenate(different))
    sides = (train, validation)
    counted, asked = (_Side(*side) for side in zip(sides, labels or sides, strict=True))

    def rung(lower: np.ndarray, order: int, period: int = 1) -> np.ndarray:
        read = partial(_read_samples, dense=dense, order=order, period=period)
        return _witten_bell(partial(read, counted), next(read(asked, len(validation))), lower, dense.size)

    lower = np.full(counts.size, 1 / vocab_size)
    ladder = {"uniform": math.log(vocab_size)}
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        lower = rung(lower, order)
        ladder[name] = _mean_nats(lower[counts])
        if name == "bigram" and period:
            ladder["position_bigram"] = _mean_nats(rung(lower, order, period)[counts])
    return ladder


def bigram_entropy(ids: np.ndarray, vocab_size: int) -> float:
    """H(x_t | x_{t-1}) of the counted bigrams, nats/token: one token of context predicts no better here.

    Shapes: ids [N].
    """
    ids = np.asarray(ids, dtype=np.int64)
    return _entropy(ids[:-1] * vocab_size + ids[1:]) - _entropy(ids[:-1])


def _witten_bell(
    counted: Callable[[], Iterator[_Sample]], asked: _Sample, lower: np.ndarray, vocab_size: int
) -> np.ndarray:
    """p(token | context) of the asked sample by the counts of the other, which is read anew at each call;
    `lower` is p of the rung below.
    """
    contexts, own = np.unique(asked.contexts, return_inverse=True)
    pairs, places = np.unique(own * vocab_size + asked.tokens, return_inverse=True)
    n_cx, n_c, t_c = _count(
        partial(_encode_pairs, counted, contexts, vocab_size), pairs, contexts.size, vocab_size
    )
    n_cx, n_c, t_c = n_cx[places], n_c[own], t_c[own]
    # A context that was never counted has no say: the rung below stands.
    return np.divide(n_cx + t_c * lower, n_c + t_c, out=lower.copy(), where=n_c > 0)


def _encode_pairs(
    counted: Callable[[], Iterator[_Sample]], contexts: np.ndarray, vocab_size: int
) -> Iterator[np.ndarray]:
    """Block by block one number for each token behind one of the contexts, which are ascending."""
    for block in counted():
        at = _find(contexts, block.contexts)
        known = (at >= 0) & (block.tokens >= 0)
        yield at[known] * vocab_size + block.tokens[known]


def _count(
    read: Callable[[], Iterator[np.ndarray]], pairs: np.ndarray, contexts: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each pair is read, how often each context, and with how many different tokens."""
    n_cx, n_c, t_c = (np.zeros(size, np.int64) for size in (pairs.size, contexts, contexts))
    begin = 0
    while begin < contexts:
        kinds = _Kinds(begin, contexts, vocab_size)
        for block in read():
            codes, counts = np.unique(block, return_counts=True)
            if begin == 0:
                at = _find(pairs, codes)
                n_cx[at[at >= 0]] += counts[at >= 0]
                np.add.at(n_c, codes // vocab_size, counts)
            kinds.add(codes)
        t_c += np.bincount(kinds.merge() // vocab_size, minlength=contexts)
        begin = kinds.end
    return n_cx, n_c, t_c


class _Kinds:
    """The different numbers that are added, of the contexts from `begin` to `end`, which comes down where
    they would be more than `MOST`. One context is kept whole: it has no more than there are tokens.
    """

    def __init__(self, begin: int, end: int, vocab_size: int):
        self.begin, self.end = begin, end
        self._vocab_size, self._most = vocab_size, max(MOST, 2 * vocab_size)
        self._found, self._new, self._added = np.empty(0, np.int64), [], 0

    def add(self, codes: np.ndarray) -> None:
        """codes: ascending, each once."""
        low, high = np.searchsorted(codes, [self.begin * self._vocab_size, self.end * self._vocab_size])
        codes = codes[low:high]
        self._new.append(codes[_find(self._found, codes) < 0])
        self._added += self._new[-1].size
        # A merge sorts all of them, so it waits until it is worth it.
        if self._added > max(BLOCK, self._found.size // 2):
            self.merge()

    def merge(self) -> np.ndarray:
        """All there are, ascending."""
        self._found = np.unique(np.concatenate([self._found, *self._new]))
        self._new, self._added = [], 0
        if self._found.size > self._most:
            self.end = int(self._found[self._most // 2]) // self._vocab_size
            self._found = self._found[: np.searchsorted(self._found, self.end * self._vocab_size)]
        return self._found


def _find(keys: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The place of each asked number among ascending keys, -1 where it is absent."""
    if not keys.size:
        return np.full(asked.shape, -1)
    at = np.searchsorted(keys, asked).clip(max=keys.size - 1)
    return np.where(keys[at] == asked, at, -1)


def _read_samples(
    side: _Side, size: int | None = None, *, dense: np.ndarray, order: int, period: int
) -> Iterator[_Sample]:
    """Blocks of what is asked for from the third token on, below zero where nothing is, and one number for
    the `order` tokens before it and its place modulo `period`; ids as their places among the dense ones.
    """
    begin, size = LONGEST, size or BLOCK
    for ids, answers in zip(*(read_blocks(part, size, LONGEST) for part in side), strict=True):
        places = np.searchsorted(dense, ids)
        contexts = np.arange(begin, begin + ids.size - LONGEST) % period
        for lag in range(order, 0, -1):
            contexts = contexts * dense.size + places[LONGEST - lag : ids.size - lag]
        asked = answers[LONGEST:]
        yield _Sample(contexts, np.where(asked >= 0, np.searchsorted(dense, asked), -1))
        begin += size


def _mean_nats(probabilities: np.ndarray) -> float:
    return float(-np.log(probabilities).mean())


def _entropy(codes: np.ndarray) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _find_different(ids: Ids) -> np.ndarray:
    """Each number once, ascending."""
    found = np.empty(0, np.int64)
    for block in read_blocks(ids, BLOCK):
        found = np.union1d(found, block).astype(np.int64)
    return found


def _list_ids(ids: Ids, name: str, vocab_size: int) -> np.ndarray:
    """The different ids. One beyond the vocabulary would be counted as another bigram, so it is refused."""
    if ids.size <= LONGEST:
        raise DataError(f"{ids.size} {name} tokens are too few for trigrams; give at least {LONGEST + 1}")
    found = _find_different(ids)
    if found[0] < 0 or found[-1] >= vocab_size:
        raise DataError(f"{name} tokens run from {found[0]} to {found[-1]}; expected 0 to {vocab_size - 1}")
    return found
