"""The checks of a run: before, during and after; what stops it, is waived, or is let pass by --no-verify."""

import json
from dataclasses import replace

import pytest

import kssm_mlx
from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import REGISTRY, Check, Definition, verdict
from kssm_mlx.errors import CheckFailed, ConfigError
from kssm_mlx.models.base import flatten
from kssm_mlx.runner import run_checks
from kssm_mlx.runs import records
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.recipe import parse
from tests.runner.test_run import contents, small_recipe, train, verdicts

pytestmark = pytest.mark.usefixtures("uncompiled")

SHORT = {"steps": 4}
OFTEN = {"every": 2, "sample_tokens": 0}


@pytest.fixture(autouse=True)
def levels(monkeypatch):
    """P1, R1 and S1, one check of each level, that fail when `failing` names them; R1 from step 4 on."""
    failing, seen = set(), []

    def look(id):
        def function(ctx):
            seen.append((id, ctx.step, len(ctx.history or ()), flatten(ctx.model.parameters())))
            late = id != "R1" or ctx.step >= 4
            return verdict(id, not (id in failing and late), f"{id} at {ctx.step}", "nothing", f"mend {id}")

        return Definition(id, id[0], f"level {id[0]}", "here", function)

    for id in ("P1", "R1", "S1"):
        monkeypatch.setitem(REGISTRY, id, look(id))
    monkeypatch.setattr(suite, "list_suite", lambda level: tuple(f"{level}1" for _ in "x" if level in "PRS"))
    return failing, seen


def a_recipe(folder, **sections):
    return small_recipe(folder, train={"steps": 6}, eval=OFTEN, save={"every": 100}, **sections)


def test_each_level_is_asked_at_its_time_and_recorded(tmp_path, levels):
    folder = tmp_path / "run"
    train(folder, a_recipe(folder), waivers={})
    assert [(id, step) for id, step, _, _ in levels[1]] == [
        ("P1", 0),
        ("R1", 2),
        ("R1", 4),
        ("R1", 6),
        ("S1", 6),
    ]
    stages = json.loads((folder / "checks.json").read_text())
    assert list(stages) == ["preflight", "during", "final"]
    assert [(c["got"], c["evidence"]) for stage in stages.values() for c in stage] == [
        ("P1 at 0", "untrained"),
        ("R1 at 6", "1 run"),
        ("S1 at 6", "1 run"),
    ]


def test_a_check_during_the_run_sees_the_parameters_of_that_step(tmp_path, levels):
    folder = tmp_path / "run"
    result, _ = train(folder, a_recipe(folder), waivers={})
    seen = {step: parameters for id, step, _, parameters in levels[1] if id == "R1"}
    final = flatten(result.state.params)
    name = "head.weight" if "head.weight" in final else sorted(final)[0]
    assert not (seen[2][name] == seen[4][name]).all().item()
    assert (seen[6][name] == final[name]).all().item()


def test_a_check_that_fails_during_the_run_stops_it_with_a_checkpoint(tmp_path, levels):
    levels[0].add("R1")
    folder = tmp_path / "run"
    with pytest.raises(CheckFailed, match=r"R1 level R: got R1 at 4, expected nothing\. mend R1") as stop:
        train(folder, a_recipe(folder), waivers={})
    assert stop.value.exit_code == 1
    saved = checkpoint.load_latest(folder / "checkpoints").snapshot
    assert saved.step == 4 and saved.pinned == "a failed check"
    assert not verdicts(folder, "during")["R1"]["ok"] and "final" not in records.read_checks(folder)
    assert not (folder / "run.lock").exists()


def test_a_run_that_was_stopped_goes_on_when_the_reason_is_gone(tmp_path, levels):
    levels[0].add("R1")
    folder = tmp_path / "run"
    with pytest.raises(CheckFailed):
        train(folder, a_recipe(folder), waivers={})
    levels[0].clear()
    result, _ = train(folder, a_recipe(folder), waivers={}, resume=True)
    assert (result.started_at, result.step) == (4, 6)
    unbroken, _ = train(tmp_path / "unbroken", a_recipe(tmp_path / "unbroken"), waivers={})
    one, other = flatten(result.state.params), flatten(unbroken.state.params)
    assert all((one[n] == other[n]).all().item() for n in one)


def test_a_waiver_lets_a_run_go_on_and_is_in_the_manifest(tmp_path, levels):
    levels[0].update(("P1", "R1"))
    folder = tmp_path / "run"
    recipe = a_recipe(folder, waive={"P1": "the subject of this run", "R1": "in the recipe"})
    result, _ = train(folder, recipe, waivers={"R1": "from the command line"})
    assert result.step == 6
    reasons = {"P1": "the subject of this run", "R1": "from the command line"}
    assert json.loads((folder / "manifest.json").read_text())["waivers"] == reasons
    for stage, id in (("preflight", "P1"), ("during", "R1")):
        kept = verdicts(folder, stage)[id]
        assert (kept["verdict"], kept["numbers"]["waived_because"]) == ("waived", reasons[id])
    assert {c.id: c.verdict for c in kssm_mlx.verify(folder)} == {
        "P1": "waived",
        "S1": "pass",
        "R1": "waived",
    }


def test_a_recipe_that_waives_what_does_not_exist_is_refused(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match="waiver of R11: no such check of runs; did you mean 'R1'"):
        train(folder, a_recipe(folder, waive={"R11": "why"}), waivers={})
    with pytest.raises(ConfigError, match="waiver of R1: a waiver needs a reason"):
        train(folder, a_recipe(folder, waive={"R1": " "}), waivers={})
    with pytest.raises(ConfigError, match=r"waive\.C1"):
        parse({"waive": {"C1": 3}})
    assert not folder.exists()


def test_words_may_change_on_resume(tmp_path, levels):
    folder = tmp_path / "run"
    train(folder, a_recipe(folder), waivers={})
    before = contents(folder / "checkpoints")
    train(folder, a_recipe(folder, waive={"P1": "added later"}), waivers={}, resume=True)
    assert contents(folder / "checkpoints") == before


@pytest.mark.parametrize("learned", [False, True])
def test_a_smoke_run_is_spared_what_it_cannot_have_learned(tmp_path, levels, learned, monkeypatch):
    levels[0].add("S1")
    monkeypatch.setitem(REGISTRY, "S1", replace(REGISTRY["S1"], needs_training=learned))
    folder = tmp_path / "run"
    recipe = a_recipe(folder).model_copy(update={"smoke": {"train": {"steps": 6}}})
    if learned:
        said = train(folder, recipe, waivers={})[1]
        assert "--smoke: would have been stopped at the end by S1 level S: got S1 at 6" in said
    else:
        with pytest.raises(CheckFailed, match="S1 level S: got S1 at 6, expected nothing"):
            train(folder, recipe, waivers={})
    assert verdicts(folder, "final")["S1"]["verdict"] == "fail"


@pytest.mark.parametrize("id, spared", [("C37", True), ("N18", True), ("C18", True), ("C8", False),
                                        ("C32", False), ("C33", False), ("C4", False)])  # fmt: skip
def test_which_checks_are_of_what_was_learned(id, spared):
    assert run_checks._judges_learning(Check(id, "", "S", "fail", "", "")) == spared


def test_no_verify_says_what_it_lets_pass_and_records_it_as_it_is(tmp_path, levels):
    levels[0].update(("P1", "R1", "S1"))
    folder = tmp_path / "run"
    result, said = train(folder, a_recipe(folder), waivers={}, verify=False)
    assert result.step == 6
    told = [line for line in said.splitlines() if "would have been stopped" in line]
    assert [line.split(" level")[0] for line in told] == [
        "--no-verify: would have been stopped before step 1 by P1",
        "--no-verify: would have been stopped after step 4 by R1",
        "--no-verify: would have been stopped at the end by S1",
    ]
    assert "got P1 at 0, expected nothing" in told[0]
    for stage, id in (("preflight", "P1"), ("during", "R1"), ("final", "S1")):
        assert verdicts(folder, stage)[id]["verdict"] == "fail"
    assert json.loads((folder / "manifest.json").read_text())["verify"] is False
