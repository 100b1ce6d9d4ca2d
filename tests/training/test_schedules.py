"""Learning rates: closed forms at the corners, arrays in and out, never a retrace."""

import math

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.schedules import SHAPES, schedule


def rates(name: str, **changes) -> np.ndarray:
    train = Train(**{"steps": 101, "warmup": 10, "learning_rate": 0.5, "schedule": name} | changes)
    return np.array(schedule(train)(mx.arange(train.steps)))


@pytest.mark.parametrize("name", SHAPES)
def test_every_schedule_warms_up_linearly_and_peaks_at_the_learning_rate(name):
    lr = rates(name)
    np.testing.assert_allclose(lr[:10], 0.5 * np.arange(1, 11) / 10, rtol=1e-6)
    assert lr.max() == pytest.approx(0.5)
    assert lr.dtype == np.float32


@pytest.mark.parametrize("name,end", [("cosine", 0.05), ("linear", 0.05), ("wsd", 0.05), ("constant", 0.5)])
def test_the_last_step_is_at_the_final_fraction(name, end):
    assert rates(name)[-1] == pytest.approx(end, rel=1e-5)


@pytest.mark.parametrize(
    "name,at_half", [("cosine", 0.275), ("linear", 0.275), ("wsd", 0.5), ("constant", 0.5)]
)
def test_half_way_after_the_warm_up(name, at_half):
    assert rates(name)[55] == pytest.approx(at_half, rel=1e-5)


def test_cosine_is_the_cosine():
    p = np.linspace(0, 1, 91)
    expected = 0.5 * (0.1 + 0.9 * 0.5 * (1 + np.cos(math.pi * p)))
    np.testing.assert_allclose(rates("cosine")[10:], expected, rtol=1e-5)


def test_wsd_comes_down_in_the_last_fifth_only():
    lr = rates("wsd", warmup=0)
    np.testing.assert_allclose(lr[:81], 0.5, rtol=1e-6)
    assert np.all(np.diff(lr[80:]) < 0)


def test_no_warm_up_and_a_warm_up_longer_than_the_run():
    assert rates("cosine", warmup=0)[0] == pytest.approx(0.5)
    lr = rates("cosine", warmup=1000)
    assert np.all(np.isfinite(lr)) and np.all(np.diff(lr) > 0)


def test_the_recipe_and_the_table_name_the_same_schedules():
    assert set(Train.model_fields["schedule"].annotation.__args__) == set(SHAPES)


def test_a_compiled_schedule_is_traced_once():
    traces = []
    rate = schedule(Train(steps=5, warmup=1))

    @mx.compile
    def lr(step):
        traces.append(1)
        return rate(step)

    assert len({lr(mx.array(i)).item() for i in range(4)}) > 1
    assert len(traces) == 1


def test_a_run_of_one_step_behind_the_warm_up_ends_at_the_floor_and_stays_there():
    lr = rates("linear", steps=12)
    assert lr[10] == pytest.approx(0.5) and lr[11] == pytest.approx(0.05)
    beyond = schedule(Train(steps=12, warmup=10, learning_rate=0.5, schedule="linear"))(mx.array([12, 500]))
    assert np.array(beyond) == pytest.approx(0.05)
