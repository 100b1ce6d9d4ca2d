"""What a recurrent state does over a text: how long it keeps, how much it moves, how many directions it uses.

All of it is free of scale and of size: a state of 4,096 numbers and one of 16 get comparable values, and a
linear state that is written twice as large and read half as large gets the same. None of it is evidence of
memory: a state that forgets everything at once moves a lot, in many directions. `retention` is what tells.

Source: docs/background/hybrids.md, from #state-over-time to #worldview.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

DEAD = 1e-6  # variance of an entry over the mean square of the state
SELECTIVE = 2.0  # times the median update: a token that was written down more than others


def retention(gaps: np.ndarray) -> float:
    """ρ, what is left per token of a difference between two states that read the same tokens from then on.

    The geometric mean over the given tokens, 0 where nothing is left, NaN without a token in between.
    Shapes: gaps [T], norms of differences.
    """
    gaps = np.asarray(gaps, np.float64)
    if gaps.size < 2 or not np.isfinite(gaps).all():
        return math.nan
    return float((gaps[-1] / gaps[0]) ** (1 / (gaps.size - 1))) if gaps[0] > 0 else 0.0


def half_life(rho: float) -> float:
    """Tokens after which half is left at a retention of `rho` per token; infinite from 1 on."""
    if not 0 < rho < 1:
        return 0.0 if rho <= 0 else math.inf if rho >= 1 else math.nan
    return math.log(2) / -math.log(rho)


def energy_entropy(states: np.ndarray) -> float:
    """Mean of -Σ p ln p / ln n with p = s² / Σ s² over the last axis: 0 where one entry holds everything, 1
    where all are equally large; Gaussian entries have 1 - 0.73 / ln n.

    A softmax of the state, as published, is uniform for any small state, whatever that holds.
    Shapes: states [..., n].
    """
    energy = np.square(np.asarray(states, np.float64))
    p = energy / np.maximum(energy.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
    nats = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    return float(nats.mean() / math.log(max(2, states.shape[-1])))


def spectrum(states: np.ndarray) -> np.ndarray:
    """Singular values of the states less their mean, largest first. Shapes: states [..., n] -> [k].

    By the smaller Gram matrix, much faster where n is large; what is below 1e-8 of the largest is noise.
    """
    flat = np.asarray(states, np.float64).reshape(-1, states.shape[-1])
    flat = flat - flat.mean(axis=0)
    if not np.isfinite(flat).all():
        return np.full(1, math.nan)
    gram = flat @ flat.T if flat.shape[0] < flat.shape[1] else flat.T @ flat
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))


def effective_rank(sigma: np.ndarray) -> float:
    """exp(H(σ / Σσ)), the number of directions that states move in; 0 where they do not move.

    Source: Roy, Vetterli 2007, "The effective rank".
    """
    if not np.sum(sigma) > 0:
        return 0.0 if np.isfinite(sigma).all() else math.nan
    p = sigma / np.sum(sigma)
    return float(np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum()))


def top_share(sigma: np.ndarray, k: int = 5) -> float:
    """Σ of the k largest σ over Σσ."""
    return float(np.sum(sigma[:k]) / np.sum(sigma)) if np.sum(sigma) > 0 else math.nan


def dead_share(states: np.ndarray) -> float:
    """Share of the entries that are the same at all times: variance < 1e-6 of the mean square of the state.

    Shapes: states [..., n].
    """
    flat = np.asarray(states, np.float64).reshape(-1, states.shape[-1])
    return float(np.mean(~(flat.var(axis=0) >= DEAD * np.mean(flat**2)) | (flat.var(axis=0) == 0)))


def consecutive_cosine(states: np.ndarray) -> float:
    """Mean cosine of the state with the one a token ago. Shapes: states [B, T, n]."""
    before, after = states[:, :-1].astype(np.float64), states[:, 1:].astype(np.float64)
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return float(np.mean((before * after).sum(axis=-1) / np.maximum(norms, np.finfo(float).tiny)))


def updates(states: np.ndarray) -> np.ndarray:
    """‖s_t - s_{t-1}‖ / ‖s_{t-1}‖, 0 from a state of zeros. Shapes: states [B, T, n] -> [B, T - 1]."""
    states = states.astype(np.float64)
    moved = np.linalg.norm(np.diff(states, axis=1), axis=-1)
    before = np.linalg.norm(states[:, :-1], axis=-1)
    return np.divide(moved, before, out=np.zeros_like(moved), where=before != 0)


def worldview(states: np.ndarray) -> float:
    """W: effective rank times the share of tokens whose update exceeds twice the median one.

    Shapes: states [B, T, n].
    """
    moved = updates(states)
    selective = np.mean(moved > SELECTIVE * np.median(moved))
    return effective_rank(spectrum(states)) * float(selective)


def reach(accuracy: Mapping[int, float], chance: float) -> float:
    """τ: the distance at which accuracy above chance is half of what it is at the shortest one.

    Between two distances by a straight line; 0 where the shortest is at chance, infinite where none is
    below half.
    """
    distances = sorted(accuracy)
    above = [accuracy[d] - chance for d in distances]
    half = above[0] / 2
    if not half > 0:
        return 0.0
    for (d0, a0), (d1, a1) in zip(zip(distances, above), zip(distances[1:], above[1:]), strict=False):
        if a1 < half:
            return d0 + (d1 - d0) * (a0 - half) / (a0 - a1)
    return math.inf


def selectivity(important: float, unimportant: float) -> float:
    """η: (important - unimportant) / important of two recalls or influences; 0 where nothing is kept."""
    return (important - unimportant) / important if important > 0 else 0.0
