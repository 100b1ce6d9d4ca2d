"""What a newcomer types first and gets wrong: one line that says what to type instead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kssm_mlx.cli import app, run_choice
from kssm_mlx.errors import ConfigError
from kssm_mlx.runs.layout import MANIFEST, RECIPE
from kssm_mlx.training.recipe import load
from tests.support.cli_fakes import kssm

OLD = Path(__file__).parents[1] / "runs" / "run-0.1.0"


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder as far as a choice looks at it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / RECIPE).write_text(json.dumps(load("default").model_dump(mode="json")))
    (folder / MANIFEST).write_text(json.dumps({"waivers": {"C17": "short"}, "verify": False}))
    return folder


def choose(named, out=None, settings=(), smoke=False, resume=False):
    return run_choice.choose(named and str(named), out, list(settings), smoke=smoke, resume=resume)


def test_a_run_goes_on_as_it_began(run):
    for chosen in (
        choose(run, resume=True),
        choose(None, run, resume=True),
        choose(run / RECIPE, resume=True),
    ):
        assert chosen.folder == run and chosen.recipe == load("default")
        assert chosen.waivers == {"C17": "short"} and chosen.verify is False


def test_a_run_that_goes_on_may_be_changed(run):
    chosen = choose(run, settings=["train.steps=7"], resume=True)
    assert chosen.recipe.train.steps == 7


def test_the_recipe_of_a_run_begins_another_one(run, tmp_path):
    chosen = choose(run / RECIPE, tmp_path / "other", ["train.seed=3"])
    assert (chosen.folder, chosen.recipe.train.seed) == (tmp_path / "other", 3)
    assert chosen.waivers == {} and chosen.verify is True


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({}, "--resume goes on with it, kssm train .*recipe.json --out FOLDER begins another"),
        ({"smoke": True, "resume": True}, "is a run, which has no smoke form"),
    ],
)
def test_a_run_without_resume_says_both_ways(run, arguments, says):
    with pytest.raises(ConfigError, match=says):
        choose(run, **arguments)


def test_nothing_to_train_says_what_to_type(tmp_path):
    with pytest.raises(ConfigError, match=r"which recipe. kssm train default"):
        choose(None)
    with pytest.raises(
        ConfigError, match=r"is no run that could go on; name a recipe: kssm train RECIPE --out"
    ):
        choose(None, tmp_path, resume=True)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["train", "defualt"], "did you mean 'default'?; kssm recipes lists"),
        (["train", "default", "--set", "data.source=task:nope"], "source: no task 'nope'; known: toy"),
        (["train", "default", "--set", "model.base=x"], "--set model.family= takes one out"),
        (["train", "default", "--set", "train.context=100000000000"], "train.context"),
        (["train", "default", "--track", "p"], "--track needs trackio"),
        (["verify", "default", "--only", " , "], "--only takes ids of checks such as C1,C7"),
        (["simulate", "--out", "/proc/x.png", "--n", "8"], "cannot write /proc/x.png"),
        (["report", "one", "--out", "x"], "--out is for the comparison of several runs"),
        (["convert", "x", "y", "--text", "EMPTY"], "has no text to score on"),
        (["data", "describe", "FILE"], "did you mean 'file:"),
        (["data", "describe", "FOLDER"], "did you mean 'dir:"),
        (["data", "describe", "LINES"], "did you mean 'jsonl:"),
        (["generate", str(OLD), "--state-out", "FILE", "--max-tokens", "1"], "is there and is no state file"),
        (["generate", str(OLD), "the ", "--max-tokens", "0"], "max_tokens"),
        (["generate", str(OLD), "the ", "--top-p", "7", "--temperature", "1"], "top_p is 7.0"),
        (["generate", str(OLD), "a\udc80b"], "the text is not UTF-8: character 1 is the byte 0x80"),
        (["generate", str(OLD), "a\ud800b"], "half a surrogate pair at position 1"),
    ],
)
def test_one_line_and_2(arguments, says, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "empty.txt").write_text(" \n")
    places = {"FILE": "a.txt", "LINES": "a.jsonl", "FOLDER": "folder", "EMPTY": "empty.txt"}
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    result = kssm(*(places.get(word, word) for word in arguments))
    assert result.exit_code == 2, result.output
    assert says in result.stderr and result.stderr.count("\n") == 1 and result.stdout == ""
    assert (tmp_path / "a.txt").read_text() == "some text"


def test_one_document_is_not_advised_to_do_what_it_does(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    result = kssm(
        "train", "default", "--set", f"data.source=jsonl:{tmp_path / 'a.jsonl'}", "--out", tmp_path / "r"
    )
    assert result.exit_code == 2 and "give more text" in result.stderr and "or use split" not in result.stderr


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.toml").write_text('\ufeff[data]\nsource = "themes"\n', "utf-8")
    assert load(tmp_path / "a.toml").data.source == "themes"


@pytest.mark.parametrize("place", ["file/out", "/proc/out"])
def test_an_export_to_where_nothing_can_be_is_one_line(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    result = kssm("export", OLD, place)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_help_and_version_as_everywhere():
    assert kssm("-h").exit_code == 0 and kssm("train", "-h").exit_code == 0
    assert kssm("--version").stdout.startswith("kssm-mlx 0.")
    assert "--install-completion" in kssm("--help").stdout
    done = subprocess.run([sys.executable, "-m", "kssm_mlx", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("kssm-mlx ")


@pytest.mark.parametrize("columns", ["60", "200"])
def test_tables_are_as_wide_as_columns_says_and_end_without_blanks(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    lines = kssm("recipes", "--failures").stdout.splitlines()
    assert max(map(len, lines)) <= int(columns) and not [line for line in lines if line != line.rstrip()]


def test_a_number_and_its_error_stay_on_one_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = kssm("recipes").stdout.splitlines()
    assert max(map(len, lines[:-2])) <= 60 and not [line for line in lines if line.rstrip().endswith("±")]
    assert "    2.65 ± 0.05)" in lines


def test_recipes_fit_80_columns():
    lines = kssm("recipes").stdout.splitlines()
    questions = [line for line in lines if line.startswith("    ")]
    assert len(questions) > 20 and max(map(len, questions)) <= 80


@pytest.mark.parametrize("given", ["the ", "the \n"])
def test_a_prompt_can_come_from_standard_input(given):
    typed, piped = (
        CliRunner().invoke(app, ["generate", str(OLD), prompt, "--max-tokens", "5"], input=given)
        for prompt in ("the ", "-")
    )
    assert piped.exit_code == 0 and piped.output == typed.output


@pytest.mark.parametrize(
    "prompts, given, says",
    [
        (["-", "-"], b"the ", "- is given twice"),
        (["-"], b"\xff", "standard input is not UTF-8: byte 0 is 0xff"),
    ],
)
def test_standard_input_that_is_no_prompt_is_refused(prompts, given, says):
    done = CliRunner().invoke(app, ["generate", str(OLD), *prompts], input=given)
    assert done.exit_code == 2 and says in done.output
