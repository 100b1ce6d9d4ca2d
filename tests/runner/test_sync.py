"""Runs that are carried to another place: whole or not at all, never over one that is ahead or another."""

import json
import os
import shutil
from pathlib import Path

import pytest

from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.runner.sync import survey, sync
from kssm_mlx.runs.layout import list_checkpoints
from kssm_mlx.runs.lock import this_process
from kssm_mlx.runs.remote import parse_place
from kssm_mlx.training.checkpoints import checkpoint
from tests.support import fake_remote
from tests.support.cli_fakes import kssm, refused

OLD = Path(__file__).parents[1] / "runs" / "run-0.1.0"
STEP = "step_00000012"


@pytest.fixture
def homes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, tmp_path / "run")
    return fake_remote.install(tmp_path / "fake", monkeypatch, "studio")


def go(source, target):
    return sync(parse_place(str(source)), parse_place(str(target)))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("target", ["studio:runs/it", "local/it's a copy"])
def test_there_and_back_is_the_same_run(homes, target):
    copied = go("run", target)
    assert copied == [path.name for path in list_checkpoints("run/checkpoints").values()] and copied
    assert go("run", target) == []
    go(target, "back")
    assert contents(Path("back")) == contents(Path("run"))
    assert checkpoint.load_latest("back/checkpoints").skipped == {}


def test_what_is_another_runs_or_in_the_way_is_not_carried(homes):
    for name in ("run.lock", ".hidden", "checkpoints/step_00000099.tmp-1"):
        Path("run", name).write_text("{}")
    go("run", "studio:it")
    assert not [n for n in contents(homes / "studio/it") if "lock" in n or "hidden" in n or "tmp" in n]


def test_a_checkpoint_that_arrives_damaged_is_not_put_in_place(homes):
    fake_remote.break_next(homes, "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{STEP} arrived damaged.*sync again"):
        go("run", "studio:it")
    there = homes / "studio/it/checkpoints"
    assert not list_checkpoints(there) and not (there / "LATEST").exists()
    assert go("run", "studio:it") == [STEP] and (there / "LATEST").is_file()


@pytest.mark.parametrize("target", ["studio:it", "here"])
def test_a_folder_of_something_else_is_left_alone(homes, target):
    folder = homes / "studio/it" if ":" in target else Path("here")
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("precious")
    with pytest.raises(
        CheckpointError, match=r"is no run: it has 'samples.jsonl' and no recipe.json; name a new"
    ):
        go("run", target)
    assert contents(folder) == {"samples.jsonl": b"precious"}
    (folder / "samples.jsonl").unlink()
    assert go("run", target) == [STEP]


def test_a_copy_that_broke_off_before_the_recipe_came_goes_on(homes):
    there = homes / "studio/it"
    (there / "checkpoints/.sync").mkdir(parents=True)
    (there / "checks.json").write_text("{}")
    assert go("run", "studio:it") == [STEP]


def test_a_file_that_no_manifest_names_is_noticed(homes):
    Path("run/checkpoints", STEP, "extra").write_text("x")
    with pytest.raises(CheckpointError, match="it has other files"):
        go("run", "studio:it")


@pytest.mark.parametrize("target", ["studio:back", "back"])
def test_a_manifest_that_was_changed_is_not_believed(homes, target):
    path = Path("run/checkpoints", STEP, "manifest.json")
    path.write_text(path.read_text().replace('"step": 12', '"step": 13'))
    with pytest.raises(CheckpointError, match="no intact manifest"):
        go("run", target)


def test_a_newer_checkpoint_of_the_same_name_takes_the_place(homes):
    go("run", "studio:it")
    there = homes / "studio/it/checkpoints" / STEP
    (there / "manifest.json").write_text("{}")
    assert go("run", "studio:it") == [STEP]
    assert contents(there) == contents(Path("run/checkpoints", STEP))
    assert not (there.parent / ".sync").exists()


def test_a_target_that_is_ahead_another_run_or_in_use_is_left_alone(homes):
    go("run", "studio:it")
    there = homes / "studio/it"
    (there / "run.lock").write_text(json.dumps(this_process()._asdict()))
    with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
        go("run", "studio:it")
    (there / "run.lock").write_text('{"pid": 0}')  # nobody
    (there / "run.lock").unlink()
    shutil.rmtree(Path("run/checkpoints", STEP))
    with pytest.raises(CheckpointError, match=f"ahead: it has {STEP}, run has no checkpoint"):
        go("run", "studio:it")
    (there / "recipe.json").write_text("{}")
    before = contents(there)
    with pytest.raises(CheckpointError, match="is another run than run"):
        go("run", "studio:it")
    assert contents(there) == before


def test_pointers_name_only_checkpoints_that_are_there(homes):
    Path("run/checkpoints/BEST").write_text("step_00000007\n")
    Path("run/checkpoints/LATEST").write_text("../../elsewhere\n")
    assert survey(parse_place("run")).pointers == {"BEST": "step_00000007"}
    go("run", "studio:it")
    assert not (homes / "studio/it/checkpoints/BEST").exists()


def test_a_run_without_a_checkpoint_is_said_to_have_none(homes):
    shutil.rmtree(Path("run/checkpoints"))
    said = "run has no checkpoint yet; its recipe and data are copied\nstudio:it: up to date\n"
    assert kssm("sync", "run", "studio:it").output == said
    assert (homes / "studio/it/recipe.json").is_file()


def test_what_cannot_be_reached_is_one_line(homes, monkeypatch):
    Path("empty").mkdir()
    assert "is not a run folder: it has no recipe.json" in refused(kssm("sync", "empty", "studio:it"))
    assert "studio:it: no such folder" in refused(kssm("sync", "studio:it", "new"))
    assert "mars:it" in refused(kssm("sync", "mars:it", "new"))
    unknown = refused(kssm("sync", "run", "mars:it"))
    assert "mars:it: " in unknown and "can you reach it with ssh?" in unknown
    assert "both elsewhere" in refused(kssm("sync", "studio:a", "studio:b"))
    assert "names no folder on that machine" in refused(kssm("sync", "run", "studio:"))
    assert kssm("sync", "run", "studio:it", "--quiet").output == ""
    assert kssm("sync", "run", "studio:it").output == "studio:it: up to date\n"
    monkeypatch.setenv("PATH", str(homes))
    assert "no ssh on this machine" in refused(kssm("sync", "studio:it", "new"))


def test_a_name_that_ssh_would_take_for_an_option_is_a_folder(homes):
    assert parse_place("-oProxyCommand=x:y").host == ""
    assert parse_place("a/b:c").host == "" and parse_place("me@studio:~/runs") == ("me@studio", "~/runs")
    Path("odd:name").mkdir()
    assert parse_place("odd:name").host == ""
    for path in ("-x", "a b", "$(x)", "a;b", "it's"):
        with pytest.raises(ConfigError, match="names no folder on that machine"):
            parse_place(f"studio:{path}")
