"""The published runs that failed: each is stopped by the check that its recipe names, and told why."""

import io
import tomllib
from dataclasses import replace

import pytest
from rich.console import Console

import kssm_mlx
from kssm_mlx.checks import suite
from kssm_mlx.checks.catalog import list_entries
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.errors import CheckFailed, ConfigError
from kssm_mlx.runner.failures import FAILURES, break_context
from kssm_mlx.runner.prepare import prepare_context
from kssm_mlx.training.recipe import list_failures, load
from tests.support.cli_fakes import kssm

NAMES = [name for name in list_failures() if load(name).failure]
SAID = {
    "attempt-2": ("C10", "not those of the files: backbone.embeddings.weight"),
    "attempt-3": ("C7", "no gradient in rwkv.embeddings.weight"),
    "float-U": ("C7", "no gradient in term legacy_uncertainty"),
    "forced-R-before-norm": ("C1", "reach 0 tokens"),
    "hook-noop-in-eval": ("C4", "look for a branch on `training`"),
    "kssm-v3": ("C1", "reach 0 tokens, e_1 0.0e+00"),
    "npy-header": ("C14", "train.bin is a .npy file; expected raw ids"),
    "pad-scored-modular": ("C31", "73% of the targets are padding"),
    "pooled-mean-leak": ("C2", "look for a mean, norm or attention over time"),
    "random-sequence": ("G1", "ceiling 0.0020, chance 0.0020"),
    "reset-k_scale": ("C27", "BRAKE moves R by -0.020 (not kept)"),
    "untrained-model-metrics": ("C17", "nats/token"),
    "wrong-tokenizer": ("C13", "vocabulary of model 57, tokenizer 114, data 57"),
}
GRAFTED = ("attempt-2", "hook-noop-in-eval", "pooled-mean-leak")
SMALLER = {"model.family": "kssm", "train.steps": 1}
# Of a longer run the steps are measured before the checks are asked.
SHORT = {"train.steps": 10}


def changes(name: str, base_model) -> dict:
    """What makes a run of seconds of it: a base model that lies ready, no larger a model than needed."""
    if name in GRAFTED:
        return {**SHORT, "model.base": str(base_model), "data.source": "pydoc"}
    return SMALLER if name == "untrained-model-metrics" else SHORT


def stopped(name: str, folder, base_model) -> str:
    """What the run says when it is stopped."""
    console = Console(file=io.StringIO())
    with pytest.raises(CheckFailed) as error:
        kssm_mlx.train(load(f"failures/{name}", changes(name, base_model)), folder, console=console)
    return str(error.value)


@pytest.fixture
def its_own(monkeypatch, quick):
    """Only the checks that a recipe names are asked, each at its level."""

    def ask(name: str):
        ids, known = load(f"failures/{name}").failure.stopped_by, list_entries()
        monkeypatch.setattr(
            suite, "list_suite", lambda level: tuple(id for id in ids if level in known[id].level)
        )

    return ask


def test_each_has_its_message_here():
    assert [f"failures/{name}" for name in SAID] == NAMES


@pytest.mark.parametrize("name", SAID)
def test_the_named_check_stops_it(name, its_own, tmp_path, base_model):
    its_own(name)
    id, said = SAID[name]
    message = stopped(name, tmp_path / "run", base_model)
    assert id in load(f"failures/{name}").failure.stopped_by
    assert f"{id} {list_entries()[id].title}: got " in message and said in message


@pytest.mark.parametrize("name", SAID)
def test_every_check_it_names_fails(name, quick, base_model, tmp_path):
    recipe = load(f"failures/{name}", changes(name, base_model))
    context = prepare_context(recipe, tmp_path, prepare(recipe.data, tmp_path / "data"))
    found = suite.run_suite(replace(context, untrained=True), recipe.failure.stopped_by)
    assert [(c.id, c.verdict) for c in found if c.verdict != "fail"] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_stops_it(name):
    text, recipe = list_failures()[name].read_text("utf-8"), load(name)
    header = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert header.startswith(recipe.about.question) and recipe.about.question.endswith("?")
    assert f"kssm train {name}" in header and "exit code 1" in header
    assert all(id in header for id in recipe.failure.stopped_by)
    assert not tomllib.loads(text).get("waive"), "nobody waives what a failure is to show"
    assert recipe.failure.breaks in {"", *FAILURES}


def test_the_command_ends_with_1_and_one_line(its_own, tmp_path):
    its_own("attempt-3")
    result = kssm("train", "failures/attempt-3", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.startswith("kssm: C6 evaluation is deterministic: got difference")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_the_command_is_stopped_with_all_checks_asked(name, tmp_path, uncompiled):
    result = kssm("train", f"failures/{name}", "--out", tmp_path / "run")
    id, said = SAID[name]
    assert result.exit_code == 1 and f"{id} {list_entries()[id].title}" in result.stderr
    assert said in result.stderr


def test_they_are_listed_with_what_stops_them():
    result = kssm("recipes", "--failures")
    assert result.exit_code == 0
    for name in NAMES:
        assert name in result.stdout
    assert "C27 controllers act" in result.stdout and "failures/host" not in result.stdout


def test_a_breakage_nobody_knows_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[data]\nsource = "themes"\n[failure]\nstopped_by = ["C6"]\nbreaks = "random-logit"\n')
    with pytest.raises(ConfigError, match="did you mean 'random-logits'"):
        kssm_mlx.verify(path, only=["C6"])


def test_only_failures_break():
    context = type("Context", (), {"recipe": load("failures/kssm-v3")})()
    assert break_context(context) is context
