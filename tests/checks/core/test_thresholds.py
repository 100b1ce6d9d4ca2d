"""Bands have two sides, NaN lies in none, and the worst of several numbers is named."""

import math

import numpy as np
import pytest

from kssm_mlx.checks.core.thresholds import Band, judge_by_band, root_mean_square

ENTROPY = Band(low=0.1, high=0.9, warn_low=0.3, warn_high=0.8)


@pytest.mark.parametrize(
    "value, word",
    [
        (0.05, "fail"),
        (0.1, "warn"),
        (0.3, "pass"),
        (0.5, "pass"),
        (0.8, "pass"),
        (0.85, "warn"),
        (0.95, "fail"),
        (math.nan, "fail"),
        (math.inf, "fail"),
        (-math.inf, "fail"),
    ],
)
def test_both_sides_fail_and_warn_and_what_is_not_finite_never_passes(value, word):
    assert ENTROPY.judge(value) == word


def test_an_open_side_takes_any_number_but_infinity():
    assert Band(low=2).judge(1e30) == "pass" and Band(low=2).judge(math.inf) == "fail"
    assert Band().judge(math.nan) == "fail"


@pytest.mark.parametrize("edges", [{"low": 2, "high": 1}, {"low": 2, "warn_low": 1}, {"low": math.nan}])
def test_edges_that_could_never_warn_or_pass_are_refused(edges):
    with pytest.raises(ValueError, match="edges of a band rise"):
        Band(**edges)


def test_the_worst_is_the_worst_verdict_and_then_the_farthest_out():
    assert ENTROPY.worst({"a": 0.5, "b": 0.85, "c": 0.82}) == "b"
    assert ENTROPY.worst({"a": 0.05, "b": 0.99, "c": 0.29}) == "a"  # both fail; 0.25 inside against 0.19
    assert ENTROPY.worst({"a": -5.0, "b": math.nan}) == "b"


def test_a_verdict_names_the_worst_and_shows_the_band():
    found = judge_by_band("C6", {"block 0": 0.5, "block 1": 0.85}, ENTROPY, "mend it")
    assert (found.verdict, found.got) == ("warn", "0.85 (block 1)")
    assert found.expected == ">= 0.1 and <= 0.9 (warns below 0.3 and above 0.8)"
    assert found.numbers["measured"] == {"block 0": 0.5, "block 1": 0.85} and found.fix == "mend it"
    assert judge_by_band("C6", {"x": math.nan}, Band(high=1), "").verdict == "fail"


def test_rms_does_not_grow_with_the_model():
    rng = np.random.default_rng(0)
    assert root_mean_square(rng.standard_normal(1000)) == pytest.approx(1, rel=0.1)
    assert root_mean_square(rng.standard_normal((100, 1000))) == pytest.approx(1, rel=0.01)
    assert math.isnan(root_mean_square([1.0, math.nan]))
