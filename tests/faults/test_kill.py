"""SIGKILL at any point of writing a checkpoint leaves the last good one loadable, and the run the same."""

import signal

import pytest

from kssm_mlx.runs import layout, lock
from kssm_mlx.training.checkpoints import checkpoint
from tests.support.tiny_run import FAULTS, in_process, rows, saved, tiny_run

# The run dies in its second checkpoint, of step 8; once that has its name, it is the last good one.
SURVIVES = {
    "before tensors": 4,
    "before manifest": 4,
    "before rename": 4,
    "before LATEST": 8,
    "before BEST": 8,
    "before pruning": 8,
    "before a row": 4,
    "before a batch": 4,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    tiny_run(folder)
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_killed_there_the_last_good_one_loads_and_the_run_goes_on(tmp_path, whole, fault):
    folder = tmp_path / "run"
    dead = in_process(folder, fault=fault)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert (folder / lock.NAME).exists()  # nobody was left to remove it
    loaded = saved(folder)
    assert loaded.snapshot.step == SURVIVES[fault] and not loaded.skipped

    result = tiny_run(folder, resume=True)

    assert result.started_at == SURVIVES[fault]
    assert not list((folder / "checkpoints").glob("*.tmp-*"))
    assert rows(folder, "train", "eval") == rows(whole, "train", "eval")
    best = [layout.read_pointer(f / "checkpoints", "BEST").name for f in (folder, whole)]
    assert best[0] == best[1]
    roots = [checkpoint.manifest.read_manifest(saved(f).path)["roots"] for f in (folder, whole)]
    assert roots[0] == roots[1]
