"""`kssm config`: a recipe in full, which is the same recipe; completion; -h wherever a command is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kssm_mlx.cli import app
from kssm_mlx.training.recipe import list_failures, list_shipped, load, read_smoke
from tests.support.cli_fakes import kssm, refused

OLD = Path(__file__).parents[1] / "runs" / "run-0.1.0"


@pytest.mark.parametrize("name", [*list_shipped(), *list_failures()])
def test_what_is_printed_is_the_same_recipe(tmp_path, name):
    done = kssm("config", name)
    assert done.exit_code == 0, done.output
    (tmp_path / "again.toml").write_text(done.stdout)
    assert load(tmp_path / "again.toml") == load(name)


@pytest.mark.parametrize("name", [*list_shipped(), *list_failures()])
def test_the_smoke_form_is_printed_too(tmp_path, name):
    if not (smoke := read_smoke(name)):
        return
    (tmp_path / "again.toml").write_text(kssm("config", name).stdout)
    assert read_smoke(tmp_path / "again.toml") == smoke
    assert load(tmp_path / "again.toml", smoke=True) == load(name, smoke=True)


@pytest.mark.parametrize(
    "setting, says",
    [
        ("model.famly=kssm", "unknown key 'model.famly' for kssm; did you mean 'family'?"),
        ("model.siz=s", "did you mean 'size'?"),
        ("train.lr=1", "unknown key 'train.lr'; did you mean 'learning_rate'?"),
        ("train.groups.mixer.lr=1", "unknown key 'train.groups.mixer.lr'; did you mean 'learning_rate'?"),
        ("data.context=64", "unknown key 'data.context'; did you mean 'train.context'?"),
        ("lr=1", "got 'lr=1'; did you mean 'train.learning_rate'?"),
        ("data.source=folder:x", "did you mean 'dir:x'?"),
        ("data.source=text:x", "did you mean 'file:x'?"),
        ("data.source=folder:.", "did you mean 'dir:.'?"),
        ('data.sources=[{source="json:x"}]', "did you mean 'jsonl:x'?"),
        ("data.tokenizer=byte", "did you mean 'bytes'?"),
        ("waive.C77=later", "waiver of C77: no such check of runs; did you mean 'C7'?"),
        ('eval.checks=["C77"]', "no check 'C77'; did you mean 'C7'?"),
        ("smoke.train.steps=3", "[smoke] is what --smoke changes; set train.steps, beside --smoke"),
    ],
)
def test_a_name_that_there_is_not_is_refused_before_anything_is_read(setting, says):
    for command in (("config", "default"), ("train", "default", "--dry-run")):
        assert says in refused(kssm(*command, "--set", setting))


def test_a_dry_run_refuses_waivers_of_no_check():
    assert "did you mean 'C7'?" in refused(kssm("train", "default", "--dry-run", "--waive", "C77=later"))


def test_settings_and_the_smoke_form_are_in_it():
    assert "\nsteps = 7\n" in kssm("config", "default", "--set", "train.steps=7").stdout
    smoke = load("default", smoke=True)
    assert f"\nsteps = {smoke.train.steps}\n" in kssm("config", "default", "--smoke").stdout
    assert "[train]" in kssm("config", OLD).stdout and "[train]" in kssm("config", OLD / "recipe.json").stdout


@pytest.mark.parametrize(
    "text",
    [
        '[data]\nsources = [{ source = "themes" }, { source = "pydoc", weight = 2 }]\n',
        '[data]\nsource = "pydoc"\n[[phase]]\nuntil = 5\n[[phase]]\n',
    ],
    ids=["sources", "phases"],
)
def test_lists_of_tables_are_printed_too(tmp_path, text):
    own, again = tmp_path / "own.toml", tmp_path / "again.toml"
    own.write_text(text + '[model]\nfamily = "kssm"\n[train]\nsteps = 10\n')
    done = kssm("config", own)
    assert done.exit_code == 0, done.output
    again.write_text(done.stdout)
    assert load(again) == load(own)


def test_what_is_no_recipe_is_refused():
    assert "no recipe 'defualt'" in refused(kssm("config", "defualt"))
    assert "train.stpes" in refused(kssm("config", "default", "--set", "train.stpes=1"))


def commands(group, *above):
    for name, command in group.commands.items():
        yield (*above, name)
        if hasattr(command, "commands"):
            yield from commands(command, *above, name)


def test_every_command_has_help_under_both_names():
    from typer.main import get_command

    for path in commands(get_command(app)):
        short, long = kssm(*path, "-h"), kssm(*path, "--help")
        assert short.exit_code == 0 and short.stdout == long.stdout and "Usage: kssm" in short.stdout, path


def test_a_shell_completes_commands():
    words = {"_KSSM_COMPLETE": "complete_bash", "COMP_WORDS": "kssm tr", "COMP_CWORD": "1"}
    kssm_command = "import sys; sys.argv[0] = 'kssm'; from kssm_mlx.cli import app; app(prog_name='kssm')"
    done = subprocess.run(
        [sys.executable, "-c", kssm_command], env={**os.environ, **words}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["train"]
