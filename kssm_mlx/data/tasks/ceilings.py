"""How well anybody could do on a task of tiled patterns: the Bayes predictor, its closed form, its average.

A stream repeats a pattern of p uniform tokens, p uniform on low..high. After m tokens of it, a period p <= m
that fits has weight V^-p, every p > m has V^-m. The predictor knows the generator and sees the past only, so
no causal model beats it: accuracy above the ceiling or loss below the floor is a leak.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Bound(NamedTuple):
    """Ceiling of the accuracy and floor of the loss in nats per target; standard errors are 0 where exact."""

    accuracy: float
    nats: float
    accuracy_se: float = 0.0
    nats_se: float = 0.0


class Forecast(NamedTuple):
    """What the Bayes predictor says before every token of a stream, and after the last.

    Shapes: token [n+1], the most probable one (0 where all are alike); best [n+1], its probability; truth
        [n], the probability of the token that came.
    """

    token: np.ndarray
    best: np.ndarray
    truth: np.ndarray


def forecast(stream: np.ndarray, low: int, high: int, vocab: int) -> Forecast:
    """The Bayes predictor of one tiled stream; where no period fits, it has nothing to say.

    Shapes: stream [n] ids.
    """
    n, periods = stream.size, np.arange(low, high + 1)
    m = np.arange(n + 1)
    seen = periods[:, None] <= m
    says = np.where(seen, np.append(stream, 0)[np.maximum(m - periods[:, None], 0)], -1)
    fits = np.cumprod(~seen[:, :n] | (says[:, :n] == stream), axis=1)
    fits = np.concatenate([np.ones((periods.size, 1)), fits], axis=1)
    weight = fits * np.exp(-np.log(vocab) * (np.minimum(periods[:, None], m) - np.minimum(low, m)))
    weight /= np.maximum(weight.sum(axis=0), np.finfo(float).tiny)
    uniform = (weight * ~seen).sum(axis=0) / vocab
    shares = (weight * seen * (says == says[:, None])).sum(axis=1) * seen + uniform
    truth = (weight * seen)[:, :n] * (says[:, :n] == stream)
    chosen = shares.argmax(axis=0)
    return Forecast(np.maximum(says[chosen, m], 0), shares.max(axis=0), truth.sum(axis=0) + uniform[:n])


def bound_tiled(m: int, low: int, high: int, vocab: int) -> Bound:
    """Expected accuracy and nats of the Bayes predictor after m tokens of a stream, up to O(1/vocab)."""
    periods, left = high - low + 1, high - m + 1
    if m < low:
        return Bound(0.0, math.log(vocab))
    if m > high:
        return Bound(1.0, 0.0)
    new = math.log(vocab) + math.log(left / (left - 1)) if left > 1 else 0.0
    return Bound((m - low + 1) / periods, (math.log(left) + (left - 1) * new) / periods)


def mean(bounds: Iterable[Bound]) -> Bound:
    """The average over targets, each of which has an exact bound."""
    accuracy, nats, _, _ = zip(*bounds, strict=True)
    return Bound(float(np.mean(accuracy)), float(np.mean(nats)))


def monte_carlo(rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> Bound:
    """The average over targets of (probability of the best guess, nats of the truth), row by row.

    Shapes: per row two arrays [targets]. Rows are the independent unit of the standard errors; one without a
    target adds nothing.
    """
    sums = np.array([[best.size, best.sum(), nats.sum()] for best, nats in rows])
    targets, totals = sums[:, :1], sums[:, 1:]
    means = totals.sum(axis=0) / targets.sum()
    errors = (totals - means * targets).std(axis=0, ddof=1) / targets.mean() / math.sqrt(len(sums))
    return Bound(*map(float, (*means, *errors)))
