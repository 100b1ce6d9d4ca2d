"""Statistics against scipy and by simulation: what they find, what they refuse to conclude."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kssm_mlx.metrics import stats


def arm(rng, mean, n=40):
    return {f"prompt {i}": value for i, value in enumerate(rng.normal(mean, 1, n))}


def test_paired_is_students_t_of_the_differences():
    rng = np.random.default_rng(0)
    a, b = arm(rng, 0.4), arm(rng, 0)
    got = stats.compare_paired(a, b)
    expected = scipy_stats.ttest_rel(list(a.values()), list(b.values()))
    interval = expected.confidence_interval()
    assert got.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (got.low, got.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    gaps = np.array(list(a.values())) - np.array(list(b.values()))
    assert got.effect == pytest.approx(gaps.mean() / gaps.std(ddof=1)) and got.n == 40


def test_unpaired_is_welchs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 12), rng.normal(1, 3, 30)
    got, expected = stats.compare_unpaired(a, b), scipy_stats.ttest_ind(a, b, equal_var=False)
    assert got.p == pytest.approx(expected.pvalue, rel=1e-9) and got.n == 12


def test_repeats_of_a_prompt_are_one_unit():
    means = stats.average_by_unit([1, 2, 3, 10, 20, 30], ["x", "x", "x", "y", "y", "y"])
    assert means == {"x": 2, "y": 20}


def test_repeats_would_have_made_noise_a_discovery():
    """20 prompts sampled 5 times, as in the precursors' benchmark; by unit false alarms are the due 5 %."""
    rng, naive, honest = np.random.default_rng(2), 0, 0
    for _ in range(400):
        prompts = rng.normal(0, 1, (2, 20))
        noisy = np.repeat(prompts, 5, axis=1) + rng.normal(0, 0.1, (2, 100))
        units = np.repeat(np.arange(20), 5)
        naive += stats.compare_unpaired(*noisy).p < 0.05
        honest += (
            stats.compare_unpaired(*(list(stats.average_by_unit(row, units).values()) for row in noisy)).p
            < 0.05
        )
    assert naive / 400 > 0.25 and honest / 400 < 0.09


def test_the_interval_holds_the_truth_and_the_mde_is_found_as_often_as_said():
    rng, held, found = np.random.default_rng(3), 0, 0
    for _ in range(500):
        a, b = rng.normal(0.5, 1, 50), rng.normal(0, 1, 50)
        got = stats.compare_unpaired(a, b)
        held += got.low <= 0.5 <= got.high
        found += stats.compare_unpaired(a - 0.5 + got.mde, b).p < 0.05
    assert held / 500 == pytest.approx(0.95, abs=0.03)
    assert found / 500 == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(
    "got",
    [
        stats.compare_paired({1: 2.0, 2: 2.0, 3: 2.0}, {1: 2.0, 2: 2.0, 3: 2.0}),
        stats.compare_unpaired([1.0, 1.0], [3.0, 3.0]),
        stats.compare_unpaired([1.0], [3.0, 4.0]),
    ],
)
def test_without_variance_nothing_is_determined(got):
    assert got.verdict == "undetermined" and math.isnan(got.p)
    assert str(got).startswith(f"undetermined: {got.n} units without variance")


def test_a_certain_but_tiny_difference_is_none():
    """A million units make d = 0.01 certain; it stays of no consequence."""
    got = stats.compare_moments((0.01, 1.0, 1_000_000), (0.0, 1.0, 1_000_000))
    assert got.p < 1e-6 and got.verdict == "no difference found" and "would have found" in str(got)


def test_holm_is_the_step_down_procedure():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = stats.holm([0.01, math.nan])
    assert corrected[0] == pytest.approx(0.02) and math.isnan(corrected[1])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_trend_is_certain_and_noise_is_not():
    rng = np.random.default_rng(4)
    noise = [stats.fit_trend(rng.normal(3, 1, 500))[1] for _ in range(200)]
    assert np.mean(np.abs(noise) > 3) < 0.02
    slope, t = stats.fit_trend(3 - 0.002 * np.arange(500) + rng.normal(0, 0.2, 500))
    assert slope == pytest.approx(-0.002, rel=0.1) and t < -10
    assert stats.fit_trend([2.0] * 9) == (0.0, 0.0)
    assert stats.fit_trend(range(9, 0, -1))[1] < -100
    assert math.isnan(stats.fit_trend([1.0, 2.0])[1])


def test_autocorrelation_of_a_buffer_and_of_noise():
    rng = np.random.default_rng(5)
    noise = rng.normal(size=2000)
    assert abs(stats.autocorrelation(noise)) < 0.07
    assert stats.autocorrelation(np.cumsum(noise)) > 0.98
    assert math.isnan(stats.autocorrelation([1.0] * 5))


@pytest.mark.parametrize("n", [2, 10, 40])
@pytest.mark.parametrize("shift", [0.0, 0.1, 1e-17])
def test_rounding_is_no_spread(n, shift):
    """Equal values whose mean is none of them; differences that are equal but for their last bit."""
    base = {i: 1.5 + i / 7 for i in range(n)}
    moved = {i: value + shift for i, value in base.items()}
    for found in (
        stats.compare_unpaired([0.04] * n, [0.04 + shift] * 3 * n),
        stats.compare_paired(moved, base),
    ):
        assert found.verdict == "undetermined" and math.isnan(found.p) and math.isnan(found.effect)
        assert found.difference == pytest.approx(-shift if found.difference < 0 else shift, abs=1e-15)


def test_a_spread_far_above_rounding_is_one():
    values = [1e6 + 1e-3 * i for i in range(10)]
    found = stats.compare_unpaired(values, [x + 1 for x in values])
    expected = scipy_stats.ttest_ind(values, [x + 1 for x in values], equal_var=False)
    assert found.verdict == "different" and found.p == pytest.approx(expected.pvalue, rel=1e-4)


@pytest.mark.parametrize("a, b", [([], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([], [])])
def test_an_arm_of_none_or_one_determines_nothing(a, b):
    assert stats.compare_unpaired(a, b).verdict == "undetermined"
    assert stats.compare_paired(dict(enumerate(a)), dict(enumerate(b))).verdict == "undetermined"


@pytest.mark.parametrize("n_a, n_b", [(2, 2), (2, 30), (5, 7), (40, 3)])
def test_welch_over_sizes(n_a, n_b):
    rng = np.random.default_rng([n_a, n_b])
    a, b = rng.normal(0, 1, n_a), rng.normal(0.5, 2, n_b)
    got, expected = stats.compare_unpaired(a, b), scipy_stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval()
    assert got.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (got.low, got.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_an_effect_is_in_units_of_the_pooled_deviation():
    """By hand: sqrt((1 + 9) / 2), of arms whose deviations are 1 and 3."""
    got = stats.compare_moments((2.0, 1.0, 10), (0.0, 3.0, 12))
    assert got.effect == pytest.approx(2 / math.sqrt(5)) and got.n == 10
    v = (0.1, 0.75)
    freedom = sum(v) ** 2 / (v[0] ** 2 / 9 + v[1] ** 2 / 11)
    half = scipy_stats.t.ppf(0.975, freedom) * math.sqrt(sum(v))
    assert (got.low, got.high) == pytest.approx((2 - half, 2 + half))
