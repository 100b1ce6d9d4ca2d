"""Estimates of recipes, runs and weights; and a run that cannot fit, which is not begun."""

import io
from pathlib import Path

import pytest
from rich.console import Console

import kssm_mlx
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import flatten
from kssm_mlx.runner import estimate as estimates
from kssm_mlx.runner import initial_model
from kssm_mlx.runner.estimate import estimate, in_one_line, show_seconds, to_json
from kssm_mlx.training.budget import fit
from kssm_mlx.training.recipe import parse
from tests.support.exported import exported, tiny
from tests.support.small_runs import sentences

pytestmark = pytest.mark.usefixtures("quick")
WAIVED = dict.fromkeys(("C16", "C7", "C8"), "not what is tested")


def small_recipe(folder: Path, **sections):
    text = folder / "text.txt"
    text.write_text(sentences(600, 0))
    table = {
        "data": {"source": f"file:{text}", "tokenizer": "bytes"},
        "model": {"family": "gru", "size": "xs"},
        "train": {"steps": 4, "batch_size": 4, "context": 16, "warmup": 1},
        "eval": {"every": 4, "tokens": 256, "sample_tokens": 0},
        "save": {"every": 4},
    }
    return parse({name: {**table.get(name, {}), **sections.get(name, {})} for name in {*table, *sections}})


def train(recipe, folder):
    out = io.StringIO()
    result = kssm_mlx.train(recipe, folder, waivers=WAIVED, console=Console(file=out, width=300))
    return result, out.getvalue()


def test_a_recipe_a_run_and_weights(tmp_path):
    recipe = small_recipe(tmp_path)
    found = estimate("mine", recipe=recipe)
    result, said = train(recipe, tmp_path / "run")
    own = sum(a.size for a in flatten(result.state.params).values())
    assert found.sums.trained == own and found.sums.frozen == 0
    assert found.step and found.step.peak > found.sums.least and found.step.seconds > 0
    assert estimate(tmp_path / "run", measure=False).sums == found.sums
    weights = estimate(exported(tiny("mamba"), tmp_path / "weights"))
    assert weights.recipe is None and weights.step is None and weights.checkpoints is None
    assert to_json(weights)["optimizer"] is None and to_json(weights)["weights"] > 0
    assert "estimate: " in said and "peak" not in said  # so short a run is not measured first


def test_a_base_model_that_a_recipe_has_yet_to_train_is_not_trained_for_an_estimate(monkeypatch):
    monkeypatch.setattr(estimates, "build_initial_model", lambda *a, **k: pytest.fail("opened"))
    found = estimate("phase-mamba", measure=False)
    assert (found.sums.trained, found.sums.frozen) == (2144, 147_266)


def test_only_sums_where_a_step_would_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(initial_model.models, "build", lambda *a, **k: pytest.fail("allocated"))
    monkeypatch.setattr(fit, "there_is_memory", lambda: 1000)
    found = estimate("mine", recipe=small_recipe(tmp_path))
    assert found.costs == () and found.sums.least > 1000
    assert "peak" not in in_one_line(found) and "of checkpoints" in in_one_line(found)


def test_what_cannot_fit_in_memory_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr(initial_model.models, "build", lambda *a, **k: pytest.fail("allocated"))
    monkeypatch.setattr(fit, "there_is_memory", lambda: 10**5)
    with pytest.raises(ConfigError, match=r"needs at least .* of memory .* there is 100 kB; .*smaller"):
        train(small_recipe(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_what_cannot_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "there_is_disk", lambda folder: 10**5)
    with pytest.raises(ConfigError, match=r"keeps 1 checkpoints of .* on disk, and there is 100 kB"):
        train(small_recipe(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_base_model_is_refused_too(tmp_path, monkeypatch, base_model):
    table = small_recipe(tmp_path).model_dump()
    table["model"] = {"base": str(base_model), "train": "full"}
    monkeypatch.setattr(fit, "there_is_memory", lambda: 10**5)
    with pytest.raises(ConfigError, match=r"needs at least"):
        train(parse(table), tmp_path / "run")


def test_a_peak_that_may_not_fit_is_warned_of_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "STEPS_WORTH_MEASURING", 4)
    recipe = small_recipe(tmp_path)
    least = estimate("mine", recipe=recipe, measure=False).sums.least
    monkeypatch.setattr(fit, "there_is_memory", lambda: least)
    result, said = train(recipe, tmp_path / "run")
    assert result.step == 4
    assert "warning: the predicted peak is" in said and "what would fit: " in said
    assert "estimate: peak about" in said and "at today's pace" in said


def test_a_measured_run_has_the_numbers_of_one_that_was_not(tmp_path, monkeypatch):
    recipe, losses = small_recipe(tmp_path), []
    for steps in (4, 1000):
        monkeypatch.setattr(estimates, "STEPS_WORTH_MEASURING", steps)
        losses.append(train(recipe, tmp_path / f"run-{steps}")[0].evaluation["nats_per_token"])
    assert losses[0] == losses[1]


def test_states_that_are_handed_on_are_in_the_checkpoint(tmp_path):
    found = estimate("a", recipe=small_recipe(tmp_path), measure=False)
    carried = estimate("b", recipe=small_recipe(tmp_path, train={"hand_off": True}), measure=False)
    assert carried.checkpoints[0] - found.checkpoints[0] == 4 * carried.state.first > 0


def test_times_in_words():
    assert [show_seconds(s) for s in (2, 95, 7200, 10**6)] == ["2 s", "1.58 min", "2 h", "11.6 days"]
