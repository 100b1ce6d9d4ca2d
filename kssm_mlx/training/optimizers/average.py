"""A running average of the parameters, which is evaluated in their place.

It follows them with a memory of `ema`, shorter at the start: what the run began with would otherwise be in it
for 1 / (1 - ema) updates.
"""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_map

Count = TypeVar("Count", int, mx.array)


def memory(ema: float, n: Count) -> Count | float | mx.array:
    """The share of the average that update number n, from 1, leaves: min(ema, (1 + n) / (10 + n)).

    Source: the argument `num_updates` of TensorFlow's ExponentialMovingAverage.
    """
    rising = (1 + n) / (10 + n)
    return mx.minimum(ema, rising) if isinstance(rising, mx.array) else min(ema, rising)


def follow(average: Any, params: Any, ema: float, count: mx.array) -> Any:
    """The average after update number `count`, an int32 [], which led to `params`. Trees of fp32 arrays."""
    new = 1 - memory(ema, count.astype(mx.float32))
    return tree_map(lambda a, p: a + new * (p - a), average, params)
