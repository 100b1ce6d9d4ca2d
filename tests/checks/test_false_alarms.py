"""A drawn verdict says how often luck alone makes it wrong, and over 200 draws it is wrong no oftener.

A draw is a healthy control or, where the check asks whether something is there at all (learning in C37, a
difference in C35, a skill in G3), the control in which it is not. The bound on the count is binomial.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from kssm_mlx.checks.catalog import find_entry
from kssm_mlx.checks.claims import difference
from kssm_mlx.checks.core.registry import REGISTRY, Context, describe_chance
from kssm_mlx.checks.state.robustness import growth
from kssm_mlx.metrics.stats import autocorrelation
from tests.checks.data.test_task_learnability import STREAMS, context, log
from tests.checks.training.test_trends import history, noise
from tests.support.check_contexts import changed, fresh_kssm, measure
from tests.support.fakes import TinyRecurrent
from tests.support.small_oscillators import trained as trained_kssm

pytestmark = pytest.mark.usefixtures("uncompiled")
DRAWS = 200
DRAWN = {"C20", "C29", "C35", "C37", "C38", "D11", "G2", "G3", "G4", "G6", "N14"}
STATISTICS = r"\b(SIGMA|trend\(|stats\.\w+\(|autocorrelation\(|noise_floor\(|best_by_counting\(|growth\()"


def most(rate: float, draws: int = DRAWS) -> int:
    """The wrong verdicts that a check of this rate may give."""
    return int(binom.ppf(0.999, draws, rate))


def assert_right(id: str, verdict_of, draws: int = DRAWS, right=("pass",)) -> None:
    """verdict_of: seed -> Check."""
    found = [(seed, verdict_of(seed)) for seed in range(draws)]
    wrong = [(seed, check.got) for seed, check in found if check.verdict not in right]
    assert len(wrong) <= most(REGISTRY[id].false_alarm, draws), wrong


def test_every_drawn_verdict_says_how_often_it_is_wrong():
    statistical = {
        id
        for id, d in REGISTRY.items()
        if d.package == "kssm_mlx" and re.search(STATISTICS, inspect.getsource(d.run))
    }
    assert statistical <= DRAWN == {id for id, d in REGISTRY.items() if d.false_alarm}


def test_readers_are_told():
    assert find_entry("N14").explanation["chance"] == describe_chance(1e-4)
    assert describe_chance(1e-4) == "by the luck of the draw alone it is wrong at most once in 10,000"


# --- the statistics, on draws of their own: fast ----------------------------------------------------------


def test_slopes_of_rows_without_a_trend_are_as_certain_as_they_say():
    """With errors that outlive a session, which made the t of a line through the means too large."""
    random = np.random.default_rng(0)
    costs = random.standard_normal((2000, 8, 32)).cumsum(axis=1)
    ps = np.array([growth(draw)[1] for draw in costs])
    for level in (0.5, 0.1, 0.01):
        assert abs(np.sum(ps < level) - 2000 * level) <= 4 * np.sqrt(2000 * level * (1 - level))


def test_batches_that_are_independent_have_no_memory():
    random = np.random.default_rng(0)
    R, losses = random.random((2, 2000, 96))
    gaps = [autocorrelation(a) - autocorrelation(b) for a, b in zip(R, losses)]
    assert sum(gap > 0.5 for gap in gaps) <= most(REGISTRY["C38"].false_alarm, 2000)


def test_noise_is_not_learning_and_learning_is():
    assert_right("C37", lambda seed: measure("C37", history(noise(seed))), right=("fail",))
    assert_right("C37", lambda seed: measure("C37", history(noise(seed) - 0.002 * np.arange(500))))


def test_arms_that_do_not_differ_are_no_claim(prepared, monkeypatch):
    """64 windows, 3 seeds a side, all of one distribution: windows differ most, then runs, then both."""
    data, recipe = prepared
    run = Context(recipe=changed(recipe, learning_rate=0.1), data=data, run_folder="a")
    runs = [replace(run, recipe=changed(run.recipe, seed=seed)) for seed in range(3)]
    base = [replace(run, recipe=changed(recipe, seed=seed), run_folder="b") for seed in range(3)]

    def verdict(seed: int):
        random = np.random.default_rng(seed)
        windows = random.normal(3, 0.5, 64)
        monkeypatch.setattr(
            difference,
            "_losses",
            lambda of: windows + random.normal(0, 0.02, (len(of), 1)) + random.normal(0, 0.02, (len(of), 64)),
        )
        return measure("C35", Context(runs=runs, baseline=base))

    assert_right("C35", verdict, right=("fail", "warn"))


def test_a_guesser_is_never_better_than_a_guess_and_the_oracle_never_beyond_its_bound(tmp_path):
    ctx = context(tmp_path, **STREAMS)
    n = 3000

    def scored(seed: int, p: float) -> Context:
        hits = np.random.default_rng(seed).binomial(n, p)
        return replace(ctx, history=log({"accuracy": hits / n, "nats_per_token": 4.0, "tokens": n}))

    chance_of, bound = ctx.data.task.chance, ctx.data.task.bound()
    assert_right("G3", lambda seed: measure("G3", scored(seed, chance_of)), right=("fail",))
    assert_right("G3", lambda seed: measure("G3", scored(seed, bound.accuracy)))

    def oracle(seed: int) -> Context:
        row = log({"accuracy": 0, "nats_per_token": 0})[1]
        hits, loss = np.random.default_rng(seed).normal(
            [bound.accuracy, bound.nats],
            [(bound.accuracy * (1 - bound.accuracy) / row["tokens"]) ** 0.5, row["se"]],
        )
        return replace(ctx, history=log({"accuracy": hits, "nats_per_token": loss}))

    assert_right("G6", lambda seed: measure("G6", oracle(seed)))


# --- the whole checks: slow -------------------------------------------------------------------------------


@pytest.mark.slow
def test_200_healthy_controls_drift_nowhere(trained):
    assert_right("N14", lambda seed: measure("N14", replace(trained, seed=seed)))


@pytest.mark.slow
def test_200_oscillators_answer_to_their_input(prepared):
    assert_right("C38", lambda seed: measure("C38", replace(fresh_kssm(prepared, seed), untrained=True)))


@pytest.mark.slow
def test_200_placebos_do_less_than_R(prepared):
    kssm = trained_kssm(prepared)
    assert_right("C20", lambda seed: measure("C20", replace(kssm, seed=seed)))


@pytest.mark.slow
def test_200_permutations_know_less_than_the_text(prepared):
    data, recipe = prepared
    ctx = Context(None, None, recipe, data, data.tokenizer)
    assert_right("C29", lambda seed: measure("C29", replace(ctx, seed=seed)))


@pytest.mark.slow
def test_200_sets_of_rows_follow_their_rule(tmp_path):
    assert_right("G2", lambda seed: measure("G2", context(tmp_path, seed=seed, **STREAMS)))


@pytest.mark.slow
def test_200_models_learn_nothing_from_shuffled_targets(tmp_path):
    small = {"p": 13, "length": 5}
    assert_right(
        "G4", lambda seed: measure("G4", context(tmp_path, "modular", TinyRecurrent, seed=seed, **small))
    )


@pytest.mark.slow
def test_200_fresh_models_answer_no_question(tmp_path):
    task = {"vocab": 20, "digits": 2, "distances": [4, 8, 16], "train_rows": 50, "validation_rows": 200}
    ctx = context(tmp_path, "passkey", TinyRecurrent, **task)
    ctx = replace(ctx, history=[{"kind": "train", "step": 1000}])

    def verdict(seed: int):
        model = TinyRecurrent(ctx.data.vocab_size, seed=seed)
        return measure("D11", replace(ctx, model=model, seed=seed))

    assert_right("D11", verdict, right=("fail",))
