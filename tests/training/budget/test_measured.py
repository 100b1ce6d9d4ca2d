"""The peak that few rows predict, against MLX's counter in steps with all of them."""

from __future__ import annotations

import io

import mlx.core as mx
import pytest
from rich.console import Console

from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.models.base import flatten
from kssm_mlx.runner.initial_model import build_initial_model
from kssm_mlx.training import losses
from kssm_mlx.training.budget import measured
from kssm_mlx.training.budget.measured import StepCost, _few_rows, measure_step, measure_steps, predict_step
from kssm_mlx.training.budget.sums import sum_bytes
from kssm_mlx.training.constraints import build_constraints
from kssm_mlx.training.loop import Callbacks, train_loop
from kssm_mlx.training.recipe import parse
from kssm_mlx.training.recipe_sections import Train
from tests.support import compiling
from tests.support.budget_cases import CASES, budget_recipe

# MLX allocates up to ten operations ahead of what it computes, by more where the machine is busy. With these
# rows that is little of the whole, and neither are the optimizer's arrays, which are the same for any rows.
FEW, ALL = (16, 32), 64
# Steps whose peaks are compared, the highest of them. That of a graft has two levels, 11 % apart, on a busy
# machine, the higher one in a third of the steps.
STEPS = {"mamba, grafted": 12}


def opened(name, folder):
    recipe = budget_recipe(name, folder)
    data = prepare(recipe.data, folder / "data")
    model = build_initial_model(recipe, data, verify=False).model
    return recipe, model, data, build_constraints(recipe, model)


# Compiling costs more than all the rest: of three it is told that a compiled step is as well predicted.
COMPILED = {"kssm", "mamba", "mamba, grafted"}


@pytest.mark.parametrize("name", CASES)
def test_the_predicted_peak_is_within_15_percent_of_the_counter(name, tmp_path, repeatable_peak, monkeypatch):
    monkeypatch.setattr(measured, "STEPS", STEPS.get(name, 3))
    with compiling.compiling(name in COMPILED):
        assert_predicted(*opened(name, tmp_path))


def test_so_is_that_of_a_large_vocabulary(tmp_path, monkeypatch, repeatable_peak):
    """Whose logits are computed in pieces, from three rows on."""
    monkeypatch.setattr(losses, "MOST_LOGITS", 2**14)
    recipe, model, data, held = opened("kssm", tmp_path)
    assert [*_few_rows(recipe, model.args.vocab_size)][:3] == [3, 6, 12]
    assert_predicted(recipe, model, data, held, few=(24, 48))


def assert_predicted(recipe, model, data, held, few=FEW):
    costs = [measure_step(recipe, model, data, held, rows) for rows in few]
    train = recipe.train.model_copy(update={"batch_size": ALL * recipe.train.accumulation})
    predicted = predict_step(costs, train, sum_bytes(model).least)
    assert predicted.rows == ALL
    assert predicted.peak == pytest.approx(measure_step(recipe, model, data, held, ALL).peak, rel=0.15)


def test_a_run_has_the_peak_that_was_measured_for_it(tmp_path, repeatable_peak):
    """Not our own step again: the loop, with its rows, its initial model and its second step."""
    recipe, model, data, held = opened("kssm", tmp_path)
    (cost,) = measure_steps(recipe, model, data, held, all_rows=True)[-1:]
    assert cost.rows == recipe.train.batch_size
    own = sum(a.nbytes for a in flatten(model.parameters()).values())
    others, peaks = mx.get_active_memory() - own, []

    def on_step(step, row):
        peaks.append(mx.get_peak_memory() - others)
        mx.reset_peak_memory()

    silent = Console(file=io.StringIO())
    train_loop(model, recipe, data, tmp_path / "run", hooks=Callbacks(on_step=on_step), console=silent)
    assert max(peaks[1:]) == pytest.approx(cost.peak, rel=0.15)


def test_a_measured_model_is_left_as_it_was(tmp_path):
    recipe, model, data, held = opened("kssm, blocks computed again", tmp_path)
    before = {name: a.tolist() for name, a in flatten(model.parameters()).items()}
    measure_step(recipe, model, data, held, 2)
    mx.eval(model.parameters())  # nothing traced stays in it
    assert before == {name: a.tolist() for name, a in flatten(model.parameters()).items()}


def test_the_prediction_is_the_line_and_never_below_the_sums():
    costs, train = [StepCost(1, 100, 0.5), StepCost(2, 150, 0.75)], Train(batch_size=8, context=8)
    assert predict_step(costs, train, 0) == (8, 450, 2.25)
    assert predict_step(costs, train, 1000).peak == 1000
    assert predict_step(costs[:1], train.model_copy(update={"batch_size": 1}), 0) == (1, 100, 0.5)


def linear_cost(rows: int) -> StepCost:
    return StepCost(rows, 100 + 10 * rows, 1.0)


def test_the_recipes_own_step_is_the_last_where_it_is_safe(tmp_path, monkeypatch):
    recipe, model, data, held = opened("kssm", tmp_path)
    monkeypatch.setattr(
        measured, "measure_step", lambda *given: StepCost(given[-1], 100 + 10 * given[-1], 1.0)
    )

    def rows(memory, all_rows):
        costs = measure_steps(recipe, model, data, held, memory=memory, all_rows=all_rows)
        return [cost.rows for cost in costs]

    assert rows(1000, False) == [1, 2, 4]
    assert rows(2 * 260, True) == [1, 2, 4, 16]  # 260 bytes for 16 rows, on the line
    assert rows(2 * 260 - 1, True) == [1, 2, 4]


def test_no_step_is_taken_that_may_not_fit(tmp_path, uncompiled):
    recipe, model, data, held = opened("kssm", tmp_path)
    (only,) = measure_steps(recipe, model, data, held, memory=10**5)
    least = sum_bytes(model).least
    assert only.rows == 1
    predicted = predict_step([only], recipe.train, least).peak
    assert predicted == pytest.approx(least + 16 * (only.peak - least))


def test_time_counts_every_piece_and_no_noise_makes_it_shrink():
    train = Train(batch_size=32, context=8, accumulation=8)  # micro-batches of 4 rows, measured with 2 pieces
    assert predict_step([StepCost(1, 1, 1.0), StepCost(2, 1, 2.0)], train, 0).seconds == 16
    assert predict_step([StepCost(1, 1, 2.0), StepCost(2, 1, 1.0)], train, 0).seconds == 4
    assert predict_step([StepCost(1, 1, 0.1), StepCost(2, 1, 1.0)], train, 0).seconds == 8


def test_no_step_is_taken_whose_logits_are_computed_otherwise():
    def recipe(rows, context):
        return parse({"train": {"batch_size": rows, "context": context}})

    assert [*_few_rows(recipe(12, 64), 256)] == [1, 2, 4, 8, 12]
    assert [*_few_rows(recipe(64, 512), 8192)] == [5, 10, 20, 40, 64]  # 2^24 logits are four rows
    assert [*_few_rows(recipe(1, 64), 256)] == [1]
