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
SLOW_SECONDS = 20.0


class Contender(NamedTuple):
    """run: does the work and returns when it is done. mlx: whether MLX's counters see its memory. eager: the
    first call does what every call does, and compiles nothing. peak: for memory that MLX's counters do not
    see; runs it once more and returns the most bytes held above what was held before.
    """

    run: Callable[[], Any]
    mlx: bool = True
    eager: bool = False
    peak: Callable[[Callable[[], Any]], int] | None = None


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
    a busy machine disturbs less; None on a GPU. turns: 1 for a slow one, see `compare`. failed: why there are
    no numbers, empty where there are.
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


def compare(
    contenders: dict[str, Contender], turns: int, budget: float, slow: float = SLOW_SECONDS
) -> list[Timing]:
    """Time every contender, one after the other in each turn; the first one is the reference.

    turns: at most; fewer, but at least `LEAST_TURNS`, where they would take more than `budget` seconds. The
    first call is kept apart, since it may compile. Only for an eager contender that needs more than `slow`
    seconds is it the one turn that it gets, held against every turn of the others.
    """
    first, failed = {}, {}
    for name, contender in contenders.items():
        try:
            first[name] = _first_call(contender, slow)
        except (RuntimeError, MemoryError) as error:
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    # A loop of others over 2,048 tokens takes minutes a call, and five turns of it an hour.
    once = {name: [spent] for name, (spent, _) in first.items() if _one_turn(contenders[name], spent, slow)}
    often: dict[str, list[Spent]] = {name: [] for name in first if name not in once}
    done, start = 0, time.perf_counter()
    while often and not _has_enough_turns(done, turns, time.perf_counter() - start, budget):
        for name, own in often.items():
            own.append(_time_call(contenders[name].run))
        done += 1
    times = once | often
    reference = times.get(next(iter(contenders)))
    good = {name: _timing(name, own, reference, *first[name]) for name, own in times.items()}
    return [good.get(name) or Timing(name, failed=failed[name]) for name in contenders]


def _one_turn(contender: Contender, first: Spent, slow: float) -> bool:
    return contender.eager and first.wall > slow


def _has_enough_turns(done: int, turns: int, spent: float, budget: float) -> bool:
    if done < LEAST_TURNS:
        return False
    return done >= turns or spent * (done + 1) / done > budget


def _timing(
    name: str, own: list[Spent], reference: list[Spent] | None, first: Spent, peak: float | None
) -> Timing:
    low, middle, high = by_cpu = (float("nan"),) * 3
    if reference:
        # Ratios within a turn: a machine that is busy for a minute slows both.
        pairs = _pairs(reference, own)
        low, middle, high = _quartiles([r.wall / t.wall for r, t in pairs])
        by_cpu = _quartiles([r.cpu / t.cpu for r, t in pairs])
    cpu_ratio = by_cpu[1] if mx.default_device() == mx.cpu else None
    milliseconds = statistics.median(t.wall for t in own) * 1e3
    return Timing(name, milliseconds, middle, low, high, cpu_ratio, len(own), first.wall, peak)


def _pairs(reference: list[Spent], own: list[Spent]) -> list[tuple[Spent, Spent]]:
    """Both of a turn; a single one beside every turn of the other."""
    n = max(len(reference), len(own))
    return list(zip(reference * (n // len(reference)), own * (n // len(own)), strict=True))


def _quartiles(ratios: list[float]) -> list[float]:
    return statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3


def _first_call(contender: Contender, slow: float) -> tuple[Spent, float | None]:
    """What it took, and peak memory in MB above what was held before.

    MLX's counters run along. Another counter gets a call of its own, since it takes time; unknown where one
    call is all there is time for.
    """
    gc.collect()
    # What the last contender freed would count as this one's, or be taken again for nothing.
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    spent = _time_call(contender.run)
    if contender.mlx:
        return spent, (mx.get_peak_memory() - held) / 1e6
    if contender.peak is None or _one_turn(contender, spent, slow):
        return spent, None
    return spent, contender.peak(contender.run) / 1e6


class Spent(NamedTuple):
    """Seconds of one run: on the clock, and of this process on all its cores."""

    wall: float
    cpu: float


def _time_call(run: Callable[[], Any]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    # A clock that did not tick would divide by zero.
    return Spent(max(time.perf_counter() - wall, 1e-9), max(time.process_time() - cpu, 1e-9))
