"""Timing that survives a noisy machine: contenders take turns, and what counts is the ratio within a turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx


@dataclass(frozen=True)
class Timing:
    """One contender in one case. ratio: the baseline's time over this one's, median of the turns, with its
    quartiles; above 1 is faster than the baseline.
    """

    name: str
    milliseconds: float
    ratio: float
    low: float
    high: float
    first_call_seconds: float
    peak_megabytes: float


def compare(contenders: dict[str, Callable[[], Any]], turns: int) -> list[Timing]:
    """Time every contender `turns` times, one after the other in each turn; the first one is the baseline.

    A contender is a function that returns the arrays to evaluate. The first call, which compiles, is kept
    apart; peak memory is that of one later call above what was held before it.
    """
    first = {name: _seconds(run) for name, run in contenders.items()}
    peak = {name: _peak(run) for name, run in contenders.items()}
    times = {name: [] for name in contenders}
    for _ in range(turns):
        for name, run in contenders.items():
            times[name].append(_seconds(run))
    baseline = next(iter(times.values()))
    return [
        _timing(name, own, [b / t for b, t in zip(baseline, own)], first[name], peak[name])
        for name, own in times.items()
    ]


def _timing(name: str, seconds: list[float], ratios: list[float], first: float, peak: float) -> Timing:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Timing(name, statistics.median(seconds) * 1e3, middle, low, high, first, peak)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    mx.eval(run())
    return time.perf_counter() - start


def _peak(run: Callable[[], Any]) -> float:
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run())
    return (mx.get_peak_memory() - held) / 2**20
