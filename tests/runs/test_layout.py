"""Which checkpoint is meant, whatever LATEST and BEST say."""

from __future__ import annotations

from pathlib import Path

import pytest

from kssm_mlx.errors import CheckpointError
from kssm_mlx.runs import layout
from kssm_mlx.training.checkpoints import checkpoint

EVIL = [
    b"",
    b"\n",
    b".",
    b"..",
    b"/",
    b"../../victim",
    b"step_00000001/../../../victim",
    b"step_1",
    b"step_000000\xc2\xb2",  # a digit of another script
    b"x" * 5000,
    b"\xff\xfe",
    b"step_00000001\0",
]


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints, beside a folder that is nobody's business."""
    folder = tmp_path / "run"
    for step in (1, 2, 3):
        (folder / layout.CHECKPOINTS / layout.step_name(step)).mkdir(parents=True)
    (folder / layout.RECIPE).write_text("{}")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim.damaged").mkdir()
    return folder


@pytest.mark.parametrize("content", EVIL, ids=lambda c: repr(c[:24]))
@pytest.mark.parametrize("name", [layout.LATEST, layout.BEST])
def test_what_names_no_checkpoint_is_no_pointer(run, name, content):
    (run / layout.CHECKPOINTS / name).write_bytes(content)
    assert layout.read_pointer(run / layout.CHECKPOINTS, name) is None
    assert layout.pick_checkpoint(run).name == "step_00000003"
    with pytest.raises(CheckpointError):  # these three hold nothing; none is outside of the run
        checkpoint.load_latest(run / layout.CHECKPOINTS)
    assert [path.parent for path in checkpoint._list_candidates(run / layout.CHECKPOINTS)] == [
        run / layout.CHECKPOINTS
    ] * 3


@pytest.mark.parametrize("kind", ["folder", "loop", "absent"])
def test_what_is_no_file_is_no_pointer(run, kind):
    pointer = run / layout.CHECKPOINTS / layout.LATEST
    if kind == "folder":
        pointer.mkdir()
    elif kind == "loop":
        pointer.symlink_to(pointer)
    assert layout.read_pointer(run / layout.CHECKPOINTS, layout.LATEST) is None
    assert layout.pick_checkpoint(run).name == "step_00000003"


def test_the_best_is_picked_and_a_lost_best_is_not(run):
    folder = run / layout.CHECKPOINTS
    checkpoint.write_pointer(folder, layout.BEST, folder / "step_00000002")
    assert layout.pick_checkpoint(run).name == "step_00000002"
    checkpoint.write_pointer(folder, layout.BEST, folder / "step_00000009")
    assert layout.pick_checkpoint(run).name == "step_00000003"


@pytest.mark.parametrize(
    "folders, names",
    [
        (["a", "b"], ["a", "b"]),
        (["a/s", "b/s", "c"], ["a/s", "b/s", "x/c"]),
        (["1/a/s", "2/a/s"], ["1/a/s", "2/a/s"]),
        (["a", "b/../a"], ["a", "a"]),
        ([], []),
    ],
)
def test_names_are_as_long_as_tells_them_apart(tmp_path, folders, names):
    assert layout.distinct_names([tmp_path / "x" / folder for folder in folders]) == names
    assert layout.distinct_names([Path("/s"), Path("/a/s")]) == ["/s", "a/s"]


def test_a_run_is_found_from_its_checkpoints_and_from_nowhere_else(run, tmp_path):
    assert layout.find_run(run) == run
    assert layout.find_run(run / layout.CHECKPOINTS / "step_00000001") == run
    assert layout.find_run(run / layout.CHECKPOINTS) is None
    assert layout.find_run(tmp_path / "victim") is None
