"""Every public statistic beside scipy, or beside its definition written out, on a grid of sizes and cases."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from kssm_mlx.metrics import language, ngrams, stats
from tests.support.activity_grid import ACTIVITY
from tests.support.statistics_cases import SAMPLES, SEEDS, SIZES, WITHOUT_SPREAD, Case, samples


def _numbers(found: stats.Comparison) -> list[float]:
    return [found.p, found.low, found.high, found.effect]


NOTHING = [math.nan] * 4


def _paired() -> Iterator[Case]:
    for name, kind, n, rng in samples():
        b = rng.normal(0, 1, n) if kind not in WITHOUT_SPREAD else np.zeros(n)
        gaps = SAMPLES[kind](rng, n)
        a = b + gaps
        found = stats.compare_paired(dict(enumerate(a)), dict(enumerate(b)))
        theirs = NOTHING
        if kind not in WITHOUT_SPREAD:
            expected = scipy_stats.ttest_rel(a, b)
            interval, gaps = expected.confidence_interval(), a - b
            theirs = [expected.pvalue, interval.low, interval.high, gaps.mean() / gaps.std(ddof=1)]
        yield Case(name, _numbers(found), theirs)
    for n in (0, 1):
        same = dict.fromkeys(range(n), 1.0)
        yield Case(f"{n} units", _numbers(stats.compare_paired(same, same)), NOTHING)


def _unpaired() -> Iterator[Case]:
    for name, kind, n, rng in samples():
        for m in SIZES:
            a, b = SAMPLES[kind](rng, n), SAMPLES[kind](rng, m)
            theirs = NOTHING
            if kind not in WITHOUT_SPREAD:
                expected = scipy_stats.ttest_ind(a, b, equal_var=False)
                interval, pooled = expected.confidence_interval(), math.hypot(a.std(ddof=1), b.std(ddof=1))
                d = (a.mean() - b.mean()) / pooled * math.sqrt(2)
                theirs = [expected.pvalue, interval.low, interval.high, d]
            yield Case(f"{name}, against {m}", _numbers(stats.compare_unpaired(a, b)), theirs)
    for a, b in (([], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([1.0, 2.0], []), ([], [])):
        yield Case(f"{len(a)} against {len(b)}", _numbers(stats.compare_unpaired(a, b)), NOTHING)


def _moments() -> Iterator[Case]:
    for name, kind, n, rng in samples():
        m, scale = int(rng.integers(2, 50)), float(rng.uniform(0.1, 3))
        sds = (0.0, 0.0) if kind in WITHOUT_SPREAD else (1.0, scale)
        a, b = (0.3, sds[0], n), (0.1, sds[1], m)
        p = math.nan
        if kind not in WITHOUT_SPREAD:
            p = scipy_stats.ttest_ind_from_stats(*a, *b, equal_var=False).pvalue
        yield Case(f"{name}, against {m}", stats.compare_moments(a, b).p, p)


def _holm() -> Iterator[Case]:
    """By closed testing: of all the sets that a question is in, the one that is hardest to reject."""
    for n, seed in itertools.product(range(9), range(20)):
        ps = np.random.default_rng([n, seed]).choice([0.001, 0.01, 0.02, 0.03, 0.3, 1.0], n)
        sets = [s for k in range(1, n + 1) for s in itertools.combinations(range(n), k)]
        theirs = [max(min(1.0, len(s) * min(ps[list(s)])) for s in sets if i in s) for i in range(n)]
        yield Case(f"{n} questions, seed {seed}", stats.holm(ps.tolist()), theirs)
        found = stats.correct_for_multiplicity([stats.Comparison(2, 0, 0, 0, 0, p, 0) for p in ps])
        yield Case(f"{n} comparisons, seed {seed}", [c.p for c in found], theirs)


def _trend() -> Iterator[Case]:
    for name, kind, n, rng in samples((*SIZES[1:], 51)):
        x = SAMPLES[kind](rng, n)
        places = np.array_split(np.arange(n), min(50, n))
        at, y = np.array([p.mean() for p in places]), np.array([x[p].mean() for p in places])
        yield Case(name, stats.fit_trend(x), (0.0, 0.0) if kind in WITHOUT_SPREAD else _line(at, y))
    for n in range(3):
        yield Case(f"{n} values", stats.fit_trend([1.0] * n), (math.nan, math.nan))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The slope of least squares and its t."""
    (slope, _), [residue], *_ = np.polyfit(x, y, 1, full=True)
    return slope, slope / math.sqrt(residue / (len(x) - 2) / math.fsum((x - x.mean()) ** 2))


def _autocorrelation() -> Iterator[Case]:
    for name, kind, n, rng in samples():
        x = SAMPLES[kind](rng, n).tolist()
        mean = math.fsum(x) / n
        for lag in (1, 2, n):
            products = math.fsum((x[t] - mean) * (x[t - lag] - mean) for t in range(lag, n))
            square = math.fsum((value - mean) ** 2 for value in x)
            theirs = math.nan if kind in WITHOUT_SPREAD else products / square
            yield Case(f"{name}, lag {lag}", stats.autocorrelation(x, lag), theirs)


def _by_unit() -> Iterator[Case]:
    for name, kind, n, rng in samples():
        x, units = SAMPLES[kind](rng, n), rng.integers(0, 3, n)
        found = stats.average_by_unit(x, units.tolist())
        yield Case(name, list(found.values()), [math.fsum(x[units == u]) / sum(units == u) for u in found])


def _losses() -> Iterator[Case]:
    for name, kind, n, rng in samples():
        x = np.abs(SAMPLES[kind](rng, n)) % 9
        found, mean = language.summarize_losses(x), math.fsum(x) / n
        error = 0.0 if kind in WITHOUT_SPREAD else scipy_stats.sem(x)
        yield Case(name, [found.loss.value, found.loss_se, found.perplexity], [mean, error, math.exp(mean)])


def _bigrams() -> Iterator[Case]:
    for n, V, seed in itertools.product((3, 40, 1000), (2, 5, 300), SEEDS):
        ids = np.random.default_rng([n, V, seed]).integers(0, V, n)
        pairs = Counter(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
        entropies = [scipy_stats.entropy(list(c.values())) for c in (pairs, Counter(ids[:-1].tolist()))]
        yield Case(f"{n} of {V}, seed {seed}", ngrams.bigram_entropy(ids, V), entropies[0] - entropies[1])


STATISTICS: dict[str, Callable[[], Iterator[Case]]] = {
    "compare_paired": _paired,
    "compare_unpaired": _unpaired,
    "compare_moments": _moments,
    "holm, correct_for_multiplicity": _holm,
    "fit_trend": _trend,
    "autocorrelation": _autocorrelation,
    "average_by_unit": _by_unit,
    "summarize_losses": _losses,
    "bigram_entropy": _bigrams,
    **ACTIVITY,
}
# Beside their definitions, counted in Python, in tests of their own.
ELSEWHERE = {
    "ngram_ladder": "tests/metrics/test_ngrams.py::test_every_rung_is_the_formula",
    "code_lengths": "tests/metrics/test_incontext.py::test_a_coder_is_its_formula_and_rows_do_not_meet",
    "in_context": "tests/metrics/test_incontext.py::test_interleaved_streams_are_found_by_stride_two",
    "measure_spread": "tests/metrics/test_separation.py::test_it_is_the_loop_on_paper_and_has_no_unit",
}


def measure(name: str) -> dict[str, Any]:
    """The number of cases of a statistic and their largest relative error."""
    errors = [case.error for case in STATISTICS[name]()]
    return {"statistic": name, "cases": len(errors), "largest_relative_error": float(f"{max(errors):.1e}")}
