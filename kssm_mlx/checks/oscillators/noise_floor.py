"""Is a difference more than noise? Measured against the same arm repeated, and against a placebo.

    floor = noise_floor(lambda seed: distance(arm(seed), arm(seed + 100)), ctx.seeds)
    effect > 3 * floor.mean   and   effect > distance(arm(0), with_added(placebo(change, seed=0)))

The floor says how far an arm is from itself under other noise. The placebo moves the same place by the same
amount in a direction that means nothing: an effect that it has too is an effect of being moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class Floor(NamedTuple):
    """Mean and standard deviation (n - 1) of what is measured where there is nothing to measure."""

    mean: float
    sd: float


def noise_floor(measure: Callable[[int], float], seeds: Iterable[int]) -> Floor:
    """`measure(seed)` compares an arm with itself under other noise. One that is not finite stays that.

    Raises: ValueError for fewer than two seeds, whose spread is not known.
    """
    measured = np.array([measure(seed) for seed in seeds], np.float64)
    if measured.size < 2:
        raise ValueError(f"a noise floor takes two seeds or more, got {measured.size}")
    return Floor(float(measured.mean()), float(measured.std(ddof=1)))


def measure_placebo(change: np.ndarray, seed: int, keep: np.ndarray | None = None) -> np.ndarray:
    """A random change whose vectors along the last axis are as long as those of `change`.

    keep: directions, shaped like `change`, that the placebo must not move along, such as the gradient of R.
    Shapes: change, keep [..., N] -> [..., N].
    """
    drawn = np.random.default_rng(seed).standard_normal(change.shape)
    if keep is not None:
        drawn -= keep * _ratio(np.sum(drawn * keep, -1, keepdims=True), np.sum(keep**2, -1, keepdims=True))
    lengths = np.linalg.norm(change, axis=-1, keepdims=True)
    return drawn * _ratio(lengths, np.linalg.norm(drawn, axis=-1, keepdims=True))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a, np.float64), where=b > 0)
