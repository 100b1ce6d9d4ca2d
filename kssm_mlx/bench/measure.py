"""Timing that survives a noisy machine: contenders take turns, and what counts is the ratio within a turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx

LEAST_TURNS = 5


class Contender(NamedTuple):
    """run: does the work and returns when it is done. mlx: whether MLX's counters see its memory."""

    run: Callable[[], Any]
    mlx: bool = True


@dataclass(frozen=True)
class Case:
    """key: such as "mamba/train/T512", by which targets and plots find it. work: how many of `unit` one run
    covers. make: builds the contenders, the one that ratios refer to first. facts: numbers for the report.
    """

    key: str
    title: str
    work: int
    unit: str
    make: Callable[[], dict[str, Contender]]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """One contender in one case. ratio: the first contender's time over this one's, median of the turns, with
    its quartiles; above 1 is faster than the first. cpu_ratio: the same by processor time, all threads, which
    a busy machine disturbs less; None on a GPU. failed: why there are no numbers, empty where there are.
    """

    name: str
    milliseconds: float = float("nan")
    ratio: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    cpu_ratio: float | None = None
    turns: int = 0
    first_call_seconds: float = float("nan")
    peak_megabytes: float | None = None
    failed: str = ""


def arrays(function: Callable[..., Any], *arguments: Any) -> Contender:
    """The contender that evaluates what `function` returns."""
    return Contender(lambda: mx.eval(function(*arguments)))


def compare(contenders: dict[str, Contender], turns: int, budget: float) -> list[Timing]:
    """Time every contender, one after the other in each turn; the first one is the reference.

    turns: at most; fewer, but at least `LEAST_TURNS`, where they would take more than `budget` seconds. The
    first call, which compiles, is kept apart; peak memory is that of this call above what was held before.
    """
    first, failed = {}, {}
    for name, contender in contenders.items():
        try:
            first[name] = _first_call(contender)
        except (RuntimeError, MemoryError) as error:
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    times: dict[str, list[Spent]] = {name: [] for name in first}
    start = time.perf_counter()
    while first and not _enough(len(next(iter(times.values()))), turns, time.perf_counter() - start, budget):
        for name in times:
            times[name].append(_spent(contenders[name].run))
    reference = times.get(next(iter(contenders)))
    good = {name: _timing(name, own, reference, first[name]) for name, own in times.items()}
    return [good.get(name) or Timing(name, failed=failed[name]) for name in contenders]


def _enough(done: int, turns: int, spent: float, budget: float) -> bool:
    if done < LEAST_TURNS:
        return False
    return done >= turns or spent * (done + 1) / done > budget


def _timing(name: str, own: list[Spent], reference: list[Spent] | None, first: tuple) -> Timing:
    low, middle, high = by_cpu = (float("nan"),) * 3
    if reference:
        low, middle, high = _quartiles([r.wall / t.wall for r, t in zip(reference, own)])
        by_cpu = _quartiles([r.cpu / t.cpu for r, t in zip(reference, own)])
    cpu_ratio = by_cpu[1] if mx.default_device() == mx.cpu else None
    milliseconds = statistics.median(t.wall for t in own) * 1e3
    return Timing(name, milliseconds, middle, low, high, cpu_ratio, len(own), *first)


def _quartiles(ratios: list[float]) -> list[float]:
    return statistics.quantiles(ratios, n=4)


def _first_call(contender: Contender) -> tuple[float, float | None]:
    """Seconds, and the peak of MLX's memory in MB where MLX is what computes."""
    gc.collect()
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    seconds = _spent(contender.run).wall
    return seconds, (mx.get_peak_memory() - held) / 1e6 if contender.mlx else None


class Spent(NamedTuple):
    """Seconds of one run: on the clock, and of this process on all its cores."""

    wall: float
    cpu: float


def _spent(run: Callable[[], Any]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    # A clock that did not tick would divide by zero.
    return Spent(max(time.perf_counter() - wall, 1e-9), max(time.process_time() - cpu, 1e-9))
