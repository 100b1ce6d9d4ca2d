"""A checkpoint is whole or absent, damage is named and passed over, and what must be kept is kept."""

import errno
import json
import os
import shutil

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.digest import root_digest, tensor_digest
from kssm_mlx.errors import CheckpointError
from kssm_mlx.runs import layout
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.checkpoints.checkpoint import Snapshot


def snapshot(step: int, pinned: str = "") -> Snapshot:
    """Arrays of several types whose values depend on the step."""
    model = {
        "a.weight": mx.random.normal((64, 32), key=mx.random.key(step)),
        "b.weight": mx.random.normal((64, 32), key=mx.random.key(step + 1000)),
        "half": mx.full((3,), step, mx.bfloat16),
    }
    optimizer = {"count": mx.array(step), "key": mx.random.key(step)}
    return Snapshot(step, {"model": model, "optimizer": optimizer}, {"step": step, "best": {}}, pinned)


def save(folder, *steps: int, **options):
    for step in steps:
        last = checkpoint.save(folder, snapshot(step), **options)
    return last


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_was_saved_is_what_is_loaded(tmp_path):
    loaded = checkpoint.load(save(tmp_path, 7))
    expected = snapshot(7)
    assert loaded.step == 7 and loaded.state == expected.state
    for stem, tensors in expected.tensors.items():
        assert loaded.tensors[stem].keys() == tensors.keys()
        for name, array in tensors.items():
            assert tensor_digest(loaded.tensors[stem][name]) == tensor_digest(array)


def test_only_the_weights_can_be_read(tmp_path):
    path = save(tmp_path, 7)
    (path / "optimizer.safetensors").unlink()
    assert checkpoint.load(path, ["model"]).tensors.keys() == {"model"}


def test_the_manifest_names_the_weights_by_one_root(tmp_path):
    manifest = json.loads((save(tmp_path, 7) / "manifest.json").read_text())
    digests = {name: tensor_digest(array) for name, array in snapshot(7).tensors["model"].items()}
    assert manifest["roots"]["model"] == root_digest(digests)


def test_the_order_of_a_manifest_says_nothing(tmp_path):
    path = save(tmp_path, 7)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(dict(reversed(manifest.items()))))
    assert checkpoint.load(path).step == 7


def test_loaded_arrays_outlive_their_file(tmp_path):
    path = save(tmp_path, 7)
    loaded = checkpoint.load(path)
    shutil.rmtree(path)
    assert np.array_equal(loaded.tensors["model"]["a.weight"], snapshot(7).tensors["model"]["a.weight"])


def test_keeps_the_last_the_best_and_the_pinned(tmp_path):
    save(tmp_path, 1)
    checkpoint.save(tmp_path, snapshot(2), keep=2, best=True)
    checkpoint.save(tmp_path, snapshot(3, pinned="SIGTERM"), keep=2)
    save(tmp_path, 4, 5, 6, 7, keep=2)
    assert list(layout.list_checkpoints(tmp_path)) == [2, 3, 6, 7]
    assert layout.read_pointer(tmp_path, "LATEST").name == "step_00000007"
    assert layout.read_pointer(tmp_path, "BEST").name == "step_00000002"


def test_keeps_the_last_three_unless_told_otherwise(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5)
    assert list(layout.list_checkpoints(tmp_path)) == [3, 4, 5]


def test_one_whose_manifest_is_gone_is_pinned_by_nobody(tmp_path):
    lose_the_manifest(save(tmp_path, 1))
    save(tmp_path, 2, 3, keep=2)
    assert list(layout.list_checkpoints(tmp_path)) == [2, 3]


@pytest.mark.parametrize(
    "error, says",
    [(OSError(errno.EIO, "Input/output error", "x"), "Input/output error"), (OSError("odd"), "odd")],
)
def test_what_the_system_says_of_a_file_is_told(tmp_path, monkeypatch, error, says):
    def failing(*_):
        raise error

    path = save(tmp_path, 7)
    monkeypatch.setattr(checkpoint.manifest, "verify_file", failing)
    with pytest.raises(CheckpointError, match=f"step_00000007 is damaged: {says}$"):
        checkpoint.load(path)


def test_the_folders_above_are_made_as_well(tmp_path):
    assert checkpoint.load(save(tmp_path / "runs" / "mine", 7)).step == 7


def test_a_new_best_frees_the_old_one(tmp_path):
    save(tmp_path, 1, 2, 3, keep=1, best=True)
    assert list(layout.list_checkpoints(tmp_path)) == [3]


def test_a_step_reached_twice_is_replaced(tmp_path):
    path = save(tmp_path, 5, 5)
    assert names(tmp_path) == ["LATEST", "step_00000005"] and checkpoint.load(path).step == 5


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.load_latest(tmp_path) is None
    assert checkpoint.load_latest(tmp_path / "absent") is None


def truncate(path):
    file = path / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(path):
    file = path / "optimizer.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 16
    file.write_bytes(raw)


def lose_a_file(path):
    (path / "optimizer.safetensors").unlink()


def lose_the_manifest(path):
    (path / "manifest.json").unlink()


def lose_everything(path):
    shutil.rmtree(path)


def cut_the_manifest(path):
    os.truncate(path / "manifest.json", 100)


def edit_the_manifest(path):
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"pinned": ""', '"pinned": "x"'))


def edit_the_state(path):
    (path / "state.json").write_text(json.dumps({"step": 99}))


def rename_another_one(path):
    other = save(path.parent, 150)
    shutil.rmtree(path)
    other.rename(path)
    checkpoint.write_pointer(path.parent, "LATEST", path)


DAMAGE = {
    truncate: "model.safetensors has sha256",
    flip_a_bit: "optimizer.safetensors has sha256",
    lose_a_file: "optimizer.safetensors is missing",
    lose_the_manifest: "manifest.json is missing",
    lose_everything: "manifest.json is missing",
    cut_the_manifest: "broken JSON",
    edit_the_manifest: "manifest.json was changed",
    edit_the_state: "state.json has sha256",
    rename_another_one: "its manifest is of step 150",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_damage_is_named_and_the_one_before_is_loaded(tmp_path, damage):
    save(tmp_path, 100)
    path = save(tmp_path, 200)
    damage(path)
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded.snapshot.step == 100
    assert list(loaded.skipped) == [path]
    assert DAMAGE[damage] in loaded.skipped[path] and str(path) in loaded.skipped[path]


def rewrite_manifest(path, change) -> None:
    """A forged manifest that agrees with itself and with the files."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["self"]
    change(manifest)
    manifest["self"] = checkpoint.manifest._self_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_two_tensors_that_changed_places_are_found_even_if_the_file_hash_agrees(tmp_path):
    path = save(tmp_path, 200)
    file = path / "model.safetensors"
    tensors = snapshot(200).tensors["model"]
    tensors["a.weight"], tensors["b.weight"] = tensors["b.weight"], tensors["a.weight"]
    mx.save_safetensors(str(file), tensors)
    forged = checkpoint.manifest.file_digest(file)
    rewrite_manifest(path, lambda m: m["files"].update({file.name: forged}))
    with pytest.raises(CheckpointError, match=r"tensor [ab].weight of model is not the one that was saved"):
        checkpoint.load(path)


def test_a_tensor_too_many_is_found(tmp_path):
    path = save(tmp_path, 200)
    rewrite_manifest(path, lambda m: m["tensors"]["model"].pop("half"))
    with pytest.raises(CheckpointError, match="disagree on the tensors half"):
        checkpoint.load(path)


def test_if_none_is_good_each_is_named(tmp_path):
    for step in (100, 200):
        truncate(save(tmp_path, step))
    with pytest.raises(CheckpointError) as e:
        checkpoint.load_latest(tmp_path)
    assert "step_00000100" in str(e.value) and "step_00000200" in str(e.value)
    assert "\n" not in str(e.value) and e.value.exit_code == 2


def refuse(code: int):
    def write(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return write


class FullDisk:
    """A binary file on a disk that fills up after `room` bytes."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 5_000, 20_000])
def test_a_full_disk_is_one_line_and_harms_nothing(tmp_path, monkeypatch, room):
    save(tmp_path, 100)
    before = names(tmp_path)
    real = checkpoint.files.write_synced
    monkeypatch.setattr(
        checkpoint.files,
        "write_synced",
        lambda path, write: real(
            path, lambda f: write(FullDisk(f, room if path.name == "model.safetensors" else 99))
        ),
    )
    with pytest.raises(CheckpointError) as e:
        save(tmp_path, 200)
    message = str(e.value)
    assert "No space left on device" in message and "free disk space" in message and str(tmp_path) in message
    assert "\n" not in message
    assert names(tmp_path) == before and checkpoint.load_latest(tmp_path).snapshot.step == 100


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_mlx_reports_a_full_disk_through_a_file_object():
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as f:
        mx.save_safetensors(f, {"a": mx.zeros(9999)})


@pytest.mark.parametrize("code, advice", [(errno.EACCES, "may write to"), (errno.EROFS, "read-only")])
def test_no_permission_is_one_line(tmp_path, monkeypatch, code, advice):
    save(tmp_path, 100)
    monkeypatch.setattr(checkpoint.files, "write_synced", refuse(code))
    with pytest.raises(CheckpointError, match=advice):
        save(tmp_path, 200)
    assert list(layout.list_checkpoints(tmp_path)) == [100]


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory"):
        save(tmp_path / "run" / "checkpoints", 1)


def test_a_failed_rename_leaves_what_was_there(tmp_path, monkeypatch):
    save(tmp_path, 100)
    monkeypatch.setattr(os, "rename", refuse(errno.EACCES))
    with pytest.raises(CheckpointError, match="Permission denied"):
        save(tmp_path, 200)
    assert names(tmp_path) == ["LATEST", "step_00000100"]


def test_only_leftovers_of_the_dead_are_cleaned(tmp_path, dead_pid):
    save(tmp_path, 100)
    parent = os.getppid()
    for name in (f"step_00000200.tmp-{dead_pid}", f"step_00000100.old.tmp-{os.getpid()}", f"x.tmp-{parent}"):
        (tmp_path / name).mkdir()
    (tmp_path / f".LATEST.tmp-{dead_pid}").write_text("")
    removed = checkpoint.remove_leftovers(tmp_path)
    assert len(removed) == 3
    assert names(tmp_path) == ["LATEST", "step_00000100", f"x.tmp-{parent}"]


def test_a_damaged_one_set_aside_makes_room(tmp_path):
    path = save(tmp_path, 100)
    truncate(path)
    checkpoint.set_aside(path)
    assert names(tmp_path) == ["LATEST", "step_00000100.damaged"]
    assert layout.list_checkpoints(tmp_path) == {}
