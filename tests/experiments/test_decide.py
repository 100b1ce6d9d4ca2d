"""Verdicts: the rates of error that are claimed, by simulation; the tests, by brute force and by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kssm_mlx.experiments.decide import decide, equivalence_p, level_at, may_stop, permute_signs
from kssm_mlx.experiments.design import parse_design
from kssm_mlx.runs.experiment import Results, RunResult


def design(rule="lower", seeds=5, smallest=0.0, claims=None, **sections):
    claims = claims or [{"arm": "a", "against": "b", "rule": rule}]
    run = {"seeds": list(range(seeds))}
    arms = {"a": {}, "b": {}, "c": {}}
    return parse_design(
        {"run": run, "arms": arms, "claim": claims, "metric": {"smallest": smallest}, **sections}
    )


def results(failed=(), **arms) -> Results:
    runs = [
        RunResult(
            name,
            seed,
            failed="C4" if (name, seed) in failed else "",
            metrics={} if (name, seed) in failed else {"nats_per_token": float(x)},
        )
        for name, values in arms.items()
        for seed, x in enumerate(values)
    ]
    return Results([{"name": "q"}], runs)


def word(a, b, **options) -> str:
    return decide(design(seeds=len(a), **options), results(a=a, b=b))[0].word


RNG = np.random.default_rng(7)
FIVE = 2.0 + 0.1 * RNG.standard_normal(5)


def test_each_word_is_reached():
    gap = 0.05 + 0.005 * RNG.standard_normal(5)
    assert word(FIVE - gap, FIVE) == "supported"
    assert word(FIVE + gap, FIVE) == "contradicted"
    assert word(FIVE - gap, FIVE, rule="higher") == "contradicted"
    assert word(FIVE + gap, FIVE, rule="different") == "supported"
    assert word(FIVE + 0.05 * RNG.standard_normal(5), FIVE) == "undecided"
    assert word(FIVE + 0.001 * RNG.standard_normal(5), FIVE, smallest=0.05) == "no difference of interest"
    assert word(FIVE + 0.001 * RNG.standard_normal(5), FIVE, rule="equal", smallest=0.05) == "supported"
    assert word(FIVE + gap, FIVE, rule="equal", smallest=0.02) == "contradicted"
    assert word(FIVE - gap, FIVE, smallest=0.2) == "no difference of interest"


many = pytest.mark.parametrize("trials", [300, pytest.param(4000, marks=pytest.mark.slow)])


@many
def test_false_positives_are_as_many_as_claimed(trials):
    """Two equal arms, alone and as three claims at once: 5 %, within three standard errors."""
    rng = np.random.default_rng(0)
    three = [{"arm": x, "against": y, "rule": "different"} for x, y in ("ab", "ac", "bc")]
    single = several = 0
    for _ in range(trials):
        a, b, c = rng.standard_normal((3, 5))
        single += decide(design("different"), results(a=a, b=b))[0].word != "undecided"
        found = decide(design(claims=three), results(a=a, b=b, c=c))
        several += any(v.word != "undecided" for v in found)
    error = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert abs(single / trials - 0.05) < error and several / trials < 0.05 + error


@many
def test_looks_spend_no_more_than_alpha(trials):
    """Looking after 3 seeds, and going on if nothing is found, is wrong at most 5 % of the time."""
    rng, wrong = np.random.default_rng(1), 0
    looking = design("different", stop={"looks": [3, 5]})
    assert level_at(looking, 3) + level_at(looking, 5) == pytest.approx(0.05)
    for _ in range(trials):
        a, b = rng.standard_normal((2, 5))
        if may_stop(looking, results(a=a[:3], b=b[:3]), 3):
            wrong += 1
        else:
            wrong += decide(looking, results(a=a, b=b))[0].word != "undecided"
    assert wrong / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@many
def test_the_difference_that_would_have_been_found_is_found_in_four_of_five(trials):
    rng, found = np.random.default_rng(2), 0
    for _ in range(trials):
        base = rng.standard_normal(5)
        # For this spread of differences, the size that power .8 is stated for.
        gaps = 0.1 * rng.standard_normal(5)
        t = scipy_stats.t(4)
        size = (t.ppf(0.975) + t.ppf(0.8)) * 0.1 / math.sqrt(5)
        found += decide(design("different"), results(a=base + gaps + size, b=base))[0].word == "supported"
    assert found / trials == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / trials) + 0.01)


def test_a_claim_is_corrected_for_the_others():
    gap = 0.03 + 0.02 * RNG.standard_normal(5)
    alone = decide(design(), results(a=FIVE - gap, b=FIVE))[0].comparison.p
    claims = [{"arm": "a", "against": "b", "rule": "lower"}, {"arm": "b", "against": "c", "rule": "lower"}]
    noise = FIVE + 0.2 * RNG.standard_normal(5)
    both = decide(design(claims=claims), results(a=FIVE - gap, b=FIVE, c=noise))[0].comparison.p
    assert both == pytest.approx(2 * alone)


def test_permutations_are_all_changes_of_sign():
    gaps = np.array([0.3, -0.1, 0.4, 0.2, 0.25])
    means = [abs(np.mean(gaps * s)) for s in itertools.product((1, -1), repeat=5)]
    assert permute_signs(gaps) == pytest.approx(np.mean(np.array(means) >= abs(gaps.mean()) - 1e-12))
    assert math.isnan(permute_signs(np.array([0.1]))) and math.isnan(permute_signs(np.zeros(4)))


@pytest.mark.parametrize("n", [2, 3, 9])
def test_equivalence_is_two_one_sided_tests(n):
    gaps = np.random.default_rng(n).normal(0.01, 0.02, n)
    mean, error = gaps.mean(), gaps.std(ddof=1) / math.sqrt(n)
    t = scipy_stats.t(n - 1)
    by_hand = max(t.sf((mean + 0.05) / error), t.cdf((mean - 0.05) / error))
    assert equivalence_p(gaps, 0.05) == pytest.approx(by_hand)
    assert math.isnan(equivalence_p(gaps, 0.0)) and math.isnan(equivalence_p(gaps[:1], 0.05))


def test_without_any_spread_only_the_same_is_the_same():
    assert equivalence_p(np.zeros(5), 0.1) == 0.0
    assert math.isnan(equivalence_p(np.full(5, 0.01), 0.1))
    assert word(FIVE, FIVE, rule="equal", smallest=0.01) == "supported"


def test_before_the_last_seed_nothing_is_decided_unless_it_was_planned():
    gap = 0.05 + 0.001 * RNG.standard_normal(5)
    part = results(a=(FIVE - gap)[:3], b=FIVE[:3])
    assert decide(design(), part)[0].word == "undecided"
    assert decide(design(stop={"looks": [3, 5]}), part)[0].word == "supported"
    assert decide(design(), part)[0].lacking == ("a seeds 3, 4", "b seeds 3, 4")


def test_runs_that_checks_stopped_are_lacking_and_the_rest_decides():
    gap = 0.05 + 0.001 * RNG.standard_normal(5)
    verdict = decide(design(), results(a=FIVE - gap, b=FIVE, failed={("a", 2)}))[0]
    assert verdict.word == "supported" and verdict.lacking == ("a seed 2",) and len(verdict.seeds) == 4


def test_a_claim_about_a_value_and_one_about_two_metrics_of_an_arm():
    runs = [
        RunResult("a", s, metrics={"x": 1.0 + 0.01 * s, "y": 0.5 + 0.01 * s * s, "nats_per_token": 1.0})
        for s in range(5)
    ]
    claims = [
        {"arm": "a", "metric": "x", "value": 0.5, "rule": "higher"},
        {"arm": "a", "metric": "x", "against_metric": "y", "rule": "higher"},
    ]
    found = decide(design(claims=claims), Results([{"name": "q"}], runs))
    assert [v.word for v in found] == ["supported", "supported"]
    assert found[0].comparison.difference == pytest.approx(0.52)


def test_windows_are_told_beside_and_decide_nothing():
    noise = np.random.default_rng(3).standard_normal((2, 40))
    runs = [
        RunResult(
            name,
            0,
            metrics={"nats_per_token": 2.0 + i},
            units={"nats_per_token": (2.0 + i + noise[i]).tolist()},
        )
        for i, name in enumerate("ab")
    ]
    verdict = decide(design(seeds=1), Results([{"name": "q"}], runs))[0]
    assert verdict.word == "undecided" and verdict.windows and verdict.windows.n == 40
