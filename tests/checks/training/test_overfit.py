"""N18, the training half of C29: a trainer that can teach one batch passes, one that cannot does not."""

import mlx.core as mx
import pytest

from kssm_mlx.checks.training import overfit
from kssm_mlx.training import step
from kssm_mlx.training.losses import split_rows
from tests.support.check_contexts import fresh, fresh_kssm, measure
from tests.support.fakes import TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")


class Drawn(TinyRecurrent):
    """Logits that are drawn anew, as in Phase-RWKV Attempt 3."""

    def forward(self, tokens, *args, **kwargs):
        out = super().forward(tokens, *args, **kwargs)
        return out._replace(logits=mx.random.normal(out.logits.shape) + 0 * out.logits)


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_model_learns_a_batch_and_is_left_as_it_was(prepared, seed):
    context = fresh(prepared, seed=seed)
    before = context.model.head.weight
    check = measure("N18", context)
    assert check.verdict == "pass", check.got
    assert mx.array_equal(context.model.head.weight, before)


def test_a_kssm_learns_a_batch(prepared):
    check = measure("N18", fresh_kssm(prepared))
    assert check.verdict == "pass" and check.numbers["steps"] < 300, check.got


def test_drawn_logits_are_caught(prepared, monkeypatch):
    monkeypatch.setattr(overfit, "STEPS", 100)
    check = measure("N18", fresh(prepared, Drawn))
    assert check.verdict == "fail" and "in 100 steps" in check.got
    assert "permuted targets cost" in check.got and "no gradient arrives (C7)" in check.fix


def test_a_learning_rate_of_zero_is_caught(prepared, monkeypatch):
    monkeypatch.setattr(overfit, "LEARNING_RATE", 1e-12)
    monkeypatch.setattr(overfit, "STEPS", 40)
    assert "in 40 steps" in measure("N18", fresh(prepared)).got


def test_a_trainer_that_permutes_targets_is_caught(prepared, monkeypatch):
    def permuted(rows):
        inputs, targets = split_rows(rows)
        return inputs, targets[::-1]  # each row is asked for the targets of another

    monkeypatch.setattr(step, "split_rows", permuted)
    check = measure("N18", fresh(prepared))
    assert check.verdict == "fail" and "permuted targets cost" in check.got


def test_it_starts_from_the_weights_before_step_1(trained):
    check = measure("N18", trained)
    assert check.verdict == "pass" and check.numbers["first"] > 2.5


def test_a_large_model_is_not_trained_300_times(prepared, monkeypatch):
    monkeypatch.setattr(overfit, "MOST", 1000)
    check = measure("N18", fresh(prepared))
    assert check.verdict == "not measurable" and "check a smaller size" in check.got
