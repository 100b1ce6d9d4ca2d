"""C33: a run that goes on as it was passes; one that forgets something on the way is caught."""

from dataclasses import replace

import mlx.core as mx
import pytest

from kssm_mlx import models
from kssm_mlx.checks.training import resumption
from kssm_mlx.training import loop
from kssm_mlx.training.state import from_arrays
from tests.support.check_contexts import changed, fresh, fresh_kssm, measure
from tests.support.exported import SMALL
from tests.support.fakes import TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.mark.parametrize("seed, hand_off", [(0, False), (1, False), (2, False), (3, False), (4, True)])
def test_a_resumed_run_is_the_same_run(prepared, seed, hand_off):
    context = fresh(prepared, seed=seed, hand_off=hand_off, steps=80)
    before = context.model.head.weight
    check = measure("C33", context)
    assert check.verdict == "pass", check.got
    assert check.numbers["gaps"]["loss"] == 0 and len(check.numbers["gaps"]) > 4
    assert mx.array_equal(context.model.head.weight, before)


def test_of_a_kssm_too(prepared):
    assert measure("C33", fresh_kssm(prepared)).verdict == "pass"


def test_a_configuration_with_infinity_resumes(prepared):
    """JSON has no infinity; Mamba-2's limit of the time step is one."""
    context = fresh(prepared)
    sizes = SMALL["mamba2"] | {"num_hidden_layers": 1}
    config = models.configure("mamba2", "xs", vocab_size=context.data.vocab_size, overrides=sizes)
    check = measure("C33", replace(context, model=models.build(config), config=config))
    assert check.verdict == "pass", check.got


def test_a_schedule_that_starts_again_is_caught(prepared, monkeypatch):
    def forgetful(*arrays):
        return from_arrays(*arrays)._replace(step=mx.array(0, mx.int32))

    monkeypatch.setattr(loop, "from_arrays", forgetful)
    check = measure("C33", fresh(prepared))
    assert check.verdict == "fail" and "lr" in check.numbers["apart"] and "step" in check.numbers["apart"]
    assert "belongs into TrainState" in check.fix


def test_a_random_key_that_is_drawn_anew_is_caught(prepared, monkeypatch):
    def reseeded(*arrays):
        return from_arrays(*arrays)._replace(key=mx.random.key(99))

    monkeypatch.setattr(loop, "from_arrays", reseeded)
    check = measure("C33", fresh(prepared))
    assert check.verdict == "fail" and check.numbers["apart"] == ["key"]


class Hidden(TinyRecurrent):
    """A state beside the parameters: a gain that grows with every call."""

    calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        out = super().forward(*args, **kwargs)
        return out._replace(logits=out.logits * (1 + 0.01 * self.calls))


def test_a_state_that_is_not_saved_is_caught(prepared):
    check = measure("C33", fresh(prepared, Hidden))
    assert check.verdict == "fail" and "loss" in check.numbers["apart"]
    assert check.got.startswith("loss differs by")


def test_the_recipe_is_shortened_not_changed(prepared):
    _, recipe = prepared
    long = changed(recipe, accumulation=3, batch_size=9, context=500, warmup=300)
    short = resumption._shorten_recipe(long).train
    assert (short.steps, short.batch_size, short.accumulation) == (20, 3, 3)
    assert short.context == 64 and short.warmup == 5 and short.learning_rate == long.train.learning_rate


def test_a_huge_checkpoint_is_not_written(prepared, monkeypatch):
    monkeypatch.setattr(resumption, "LARGEST", 1000)
    check = measure("C33", fresh(prepared))
    assert check.verdict == "not measurable" and "check a smaller size" in check.got
