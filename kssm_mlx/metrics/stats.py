"""What a difference is worth: independent units, an interval, an effect, and what could have been missed.

The unit is what was drawn independently: a prompt, a window of text, a seed. Tokens of one text and repeats
of one prompt are not, so they are averaged first (`average_by_unit`). Nobody concludes "no difference": a
comparison finds one, or says how large one it would have found, or, without variance, that nothing is
determined.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

Unit = TypeVar("Unit", bound=Hashable)

ALPHA, POWER = 0.05, 0.8
ROUNDING = 2.0**-40  # of the size of the values: a deviation below it is that of float64 sums, not of units
SMALL = 0.2  # Cohen's d below which a difference is of no consequence, however certain


@dataclass(frozen=True)
class Comparison:
    """The mean difference of two arms, a less b.

    n: independent units per arm, the fewer of the two; low, high: its 95 % interval; effect: Cohen's d, NaN
    without variance; p: two-sided, of Student's t, after `holm` where several were asked; mde: the smallest
    difference found in 4 of 5 experiments of this size.
    """

    n: int
    difference: float
    low: float
    high: float
    effect: float
    p: float
    mde: float

    @property
    def verdict(self) -> Literal["different", "no difference found", "undetermined"]:
        """A difference needs both: p below 0.05 and an effect of at least 0.2."""
        if not math.isfinite(self.p):
            return "undetermined"
        found = self.p < ALPHA and abs(self.effect) >= SMALL
        return "different" if found else "no difference found"

    def __str__(self) -> str:
        if self.verdict == "undetermined":
            return f"undetermined: {self.n} units without variance (difference {self.difference:+.4g})"
        return (
            f"{self.verdict}: {self.difference:+.4g} [{self.low:+.4g}, {self.high:+.4g}], "
            f"d {self.effect:+.2f}, p {self.p:.2g}, n {self.n}, would have found {self.mde:.2g}"
        )


def average_by_unit(values: Iterable[float], units: Iterable[Hashable]) -> dict[Hashable, float]:
    """The mean of each unit: 20 prompts sampled 5 times are 20 units, not 100."""
    groups: dict[Hashable, list[float]] = {}
    for value, unit in zip(values, units, strict=True):
        groups.setdefault(unit, []).append(value)
    return {unit: float(np.mean(group)) for unit, group in groups.items()}


def compare_paired(a: Mapping[Unit, float], b: Mapping[Unit, float]) -> Comparison:
    """The comparison of arms that saw the same units, on the units of both; effect is the paired d.

    Source: Student's t of the differences.
    """
    gaps = np.array([a[unit] - b[unit] for unit in a if unit in b], np.float64)
    size = max((abs(x) for unit in a if unit in b for x in (a[unit], b[unit])), default=0.0)
    sd = _spread(gaps, size)
    mean = float(gaps.mean()) if gaps.size else math.nan
    return _comparison(gaps.size, mean, sd, sd / math.sqrt(max(1, gaps.size)), gaps.size - 1)


def compare_unpaired(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """The comparison of arms with units of their own, such as seeds, one value each."""
    return compare_moments(*(_moments(values) for values in (a, b)))


def compare_moments(a: tuple[float, float, int], b: tuple[float, float, int]) -> Comparison:
    """The comparison of two arms given as (mean, standard deviation over units, units).

    Source: Welch's t; the effect is in units of the pooled standard deviation.
    """
    (mean_a, sd_a, n_a), (mean_b, sd_b, n_b) = a, b
    least = ROUNDING * max(abs(mean_a), abs(mean_b))
    sd_a, sd_b = (0.0 if sd <= least else sd for sd in (sd_a, sd_b))
    v_a, v_b = sd_a**2 / max(1, n_a), sd_b**2 / max(1, n_b)
    variance = v_a + v_b
    # One value has no spread: a difference of two of them is neither large nor small.
    if min(n_a, n_b) < 2 or not variance > 0:
        return _comparison(min(n_a, n_b), mean_a - mean_b, math.nan, math.nan, 0)
    freedom = variance**2 / (v_a**2 / (n_a - 1) + v_b**2 / (n_b - 1))
    pooled = math.sqrt((sd_a**2 + sd_b**2) / 2)
    return _comparison(min(n_a, n_b), mean_a - mean_b, pooled, math.sqrt(variance), freedom)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for having asked several questions; NaN stays and counts as one.

    Source: Holm 1979, the step-down procedure.
    """
    # NaN last: a question without an answer was asked all the same.
    order = np.argsort(np.nan_to_num(ps, nan=math.inf), kind="stable")
    corrected, worst = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = worst if math.isfinite(ps[i]) else math.nan
    return corrected


def correct_for_multiplicity(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, each with the p it has when all of them were asked."""
    ps = holm([comparison.p for comparison in comparisons])
    return [replace(comparison, p=p) for comparison, p in zip(comparisons, ps)]


def fit_trend(values: Sequence[float], pieces: int = 50) -> tuple[float, float]:
    """(slope per value, its t) of a series, by a straight line through the means of up to `pieces` pieces.

    Means of neighbours, because noise that outlives a step would make every drift look certain. t is 0 for
    a series that does not change, NaN for fewer than 3 values.
    """
    from scipy.stats import linregress

    series = np.asarray(values, np.float64)
    if series.size < 3 or not np.isfinite(series).all():
        return math.nan, math.nan
    places = np.array_split(np.arange(series.size), min(pieces, series.size))
    # Of unequal lengths by one at most, so that a mean weighs as much as any other.
    y = np.array([series[place].mean() for place in places])
    if np.ptp(y) <= ROUNDING * np.abs(y).max():
        return 0.0, 0.0
    line: Any = linregress([place.mean() for place in places], y)
    t = line.slope / line.stderr if line.stderr else math.copysign(math.inf, line.slope)
    return float(line.slope), float(t)


def autocorrelation(values: Sequence[float], lag: int = 1) -> float:
    """The correlation of a series with itself `lag` values later, lag >= 1; NaN for a constant one."""
    x = np.asarray(values, np.float64)
    if x.size < 2 or not _spread(x, float(np.abs(x).max())) > 0:
        return math.nan
    x = x - x.mean()
    return float(np.dot(x[lag:], x[:-lag]) / np.dot(x, x))


def _moments(values: Sequence[float]) -> tuple[float, float, int]:
    x = np.asarray(values, np.float64)
    if not x.size:
        return math.nan, math.nan, 0
    return float(x.mean()), _spread(x, float(np.abs(x).max())), x.size


def _spread(x: np.ndarray, size: float) -> float:
    """The standard deviation; 0 for one that is the rounding of values of this size, NaN for one value."""
    if x.size < 2:
        return math.nan
    sd = float(x.std(ddof=1))
    return 0.0 if sd <= ROUNDING * size else sd


def _comparison(n: int, difference: float, sd: float, error: float, freedom: float) -> Comparison:
    """From the difference, the deviation it is measured in and its standard error."""
    from scipy.stats import t

    if not error > 0:
        return Comparison(n, difference, math.nan, math.nan, math.nan, math.nan, math.nan)
    reach = float(t.ppf(1 - ALPHA / 2, freedom))
    return Comparison(
        n=n,
        difference=difference,
        low=difference - reach * error,
        high=difference + reach * error,
        effect=difference / sd,
        p=float(2 * t.sf(abs(difference) / error, freedom)),
        mde=(reach + float(t.ppf(POWER, freedom))) * error,
    )
