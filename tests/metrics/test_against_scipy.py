"""Every public statistic is what scipy, or its definition, says: also of two values, or of equal ones."""

import importlib
import inspect
import math
import pkgutil

import numpy as np
import pytest

from kssm_mlx import metrics
from kssm_mlx.metrics import stats
from tests.support.pytest_ids import names_a_test
from tests.support.statistics_cases import Case
from tests.support.statistics_grid import ELSEWHERE, STATISTICS

LARGEST_ERROR = 1e-7  # of a t of values that are 100,000 times their spread; others are below 1e-9


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Precision loss")
def test_is_what_scipy_or_the_definition_says(name):
    cases = list(STATISTICS[name]())
    wrong = [case for case in cases if case.error > LARGEST_ERROR]
    assert len(cases) >= 9 and not wrong[:3]


def test_no_public_statistic_is_left_out():
    modules = [
        importlib.import_module(f"{metrics.__name__}.{m.name}")
        for m in pkgutil.iter_modules(metrics.__path__)
    ]
    public = {
        name
        for module in modules
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and not name.startswith("_")
    }
    compared = {name for names in STATISTICS for name in names.split(", ")}
    assert len(public) > 20 and public == compared | ELSEWHERE.keys()
    assert all(map(names_a_test, ELSEWHERE.values()))


@pytest.mark.parametrize(
    "ours, theirs",
    [(1.0, 1.0 + 1e-6), (1.0, math.nan), (math.nan, 1.0), (math.inf, 1.0), ([1.0], [1.0, 1.0])],
)
def test_a_number_that_differs_is_seen(ours, theirs):
    assert Case("", ours, theirs).error > LARGEST_ERROR
    assert Case("", theirs, theirs).error == 0


@pytest.mark.parametrize("n", [3, 12, 51, 300])
def test_equal_values_have_no_trend_and_no_autocorrelation(n):
    """The mean of twelve 0.04 is none of them: their autocorrelation came out as 0.92."""
    assert stats.fit_trend([0.04] * n) == (0.0, 0.0)
    assert math.isnan(stats.autocorrelation([0.04] * n))
    assert math.isnan(stats.autocorrelation(np.full(n, 0.04) + 1e-17))
