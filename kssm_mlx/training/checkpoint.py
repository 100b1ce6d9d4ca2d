"""Checkpoints that a crash cannot half-write and that damage cannot pass through unseen.

    checkpoints/step_00000200/   model.safetensors  optimizer.safetensors  (carry.safetensors)  state.json
                                 manifest.json
    checkpoints/LATEST, BEST     names of folders, for people and scripts

`save` writes into `step_00000200.tmp-<pid>`, flushes every file to disk, writes the manifest last, renames the
folder, flushes the parent, and only then moves LATEST and BEST and removes what is no longer kept. `load_latest`
takes the newest checkpoint that verifies and says which newer ones did not and why.

Source: mlx.md section 5 (Orbax and torch DCP do the same; mlx-lm's trainer has none of it).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from kssm_mlx import files
from kssm_mlx.digest import file_digest, root_digest, tensor_digest
from kssm_mlx.errors import CheckpointError
from kssm_mlx.training import lock

Tensors = dict[str, mx.array]

_STEP = re.compile(r"step_(\d{8,})")
_LEFTOVER = re.compile(r".+\.tmp-(\d+)")
_ADVICE = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free space in your quota",
    errno.EROFS: "the volume is read-only: choose another folder",
}


@dataclass(frozen=True)
class Snapshot:
    """Everything a run needs to go on.

    tensors: file stem ("model", "optimizer", "carry") -> flat name -> array; state: plain JSON values;
    pinned: why this checkpoint is never pruned ("SIGTERM"), or "".
    """

    step: int
    tensors: dict[str, Tensors]
    state: dict[str, Any]
    pinned: str = ""


@dataclass(frozen=True)
class Loaded:
    """The newest good checkpoint, and one line for each newer one that was passed over."""

    path: Path
    snapshot: Snapshot
    skipped: dict[Path, str]


def save(folder: str | Path, snapshot: Snapshot, *, keep: int = 3, best: bool = False) -> Path:
    """Write one checkpoint, whole or not at all; then prune to the last `keep`, the best and the pinned ones.

    Raises: CheckpointError (full disk, no permission); what was there before is untouched.
    """
    folder = Path(folder)
    final = folder / f"step_{snapshot.step:08d}"
    temporary = _temporary(final)
    with _explained(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_all(temporary, snapshot)
            _publish(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        files.replace(folder / "LATEST", final.name + "\n")
        if best:
            files.replace(folder / "BEST", final.name + "\n")
        _prune(folder, keep)
    return final


def load(path: str | Path, stems: Iterable[str] | None = None) -> Snapshot:
    """Read and verify one checkpoint; `stems=["model"]` reads only the weights.

    Raises: CheckpointError that says what is damaged. Nothing lazy is returned.
    """
    path = Path(path)
    try:
        manifest = _read_manifest(path)
        stems = list(manifest["tensors"] if stems is None else stems)
        for name in ["state.json", *(f"{stem}.safetensors" for stem in stems)]:
            _verify_file(path / name, manifest["files"][name])
        tensors = {stem: _read_tensors(path, stem, manifest["tensors"][stem]) for stem in stems}
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise CheckpointError(f"checkpoint {path} is damaged: {_reason(e)}") from None
    return Snapshot(manifest["step"], tensors, state, manifest["pinned"])


def load_latest(folder: str | Path) -> Loaded | None:
    """The newest checkpoint that verifies; None if the folder has never had one.

    Raises: CheckpointError if there are checkpoints and none is good.
    """
    skipped: dict[Path, str] = {}
    for path in _candidates(Path(folder)):
        try:
            return Loaded(path, load(path), skipped)
        except CheckpointError as e:
            skipped[path] = str(e)
    if skipped:
        raise CheckpointError(f"no usable checkpoint in {folder}: {'; '.join(skipped.values())}")
    return None


def pointer(folder: str | Path, name: str = "LATEST") -> Path | None:
    """The checkpoint that LATEST or BEST names, whether or not it exists; None without such a file."""
    file = Path(folder) / name
    return Path(folder) / file.read_text().strip() if file.is_file() else None


def set_aside(path: Path) -> Path | None:
    """Rename a damaged checkpoint so that a resumed run can reach its step again; None if it is gone."""
    if not path.exists():
        return None
    aside = path.with_name(f"{path.name}.damaged")
    with _explained(path.parent):
        shutil.rmtree(aside, ignore_errors=True)
        return path.rename(aside)


def clean(folder: str | Path) -> list[str]:
    """Remove what dead writers left behind (call it holding the run's lock); the names removed."""
    removed = []
    for path in sorted(Path(folder).glob("*.tmp-*")) + sorted(Path(folder).glob(".*.tmp-*")):
        match = _LEFTOVER.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not lock.alive(int(match[1]))):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            removed.append(path.name)
    return removed


def steps(folder: str | Path) -> dict[int, Path]:
    """Step -> folder of every finished checkpoint, oldest first."""
    found = {int(m[1]): p for p in Path(folder).glob("step_*") if (m := _STEP.fullmatch(p.name))}
    return dict(sorted(found.items()))


def _candidates(folder: Path) -> list[Path]:
    """Newest first, and ahead of them a checkpoint that LATEST promises but that is not there."""
    there = list(steps(folder).values())[::-1]
    promised = pointer(folder)
    return there if promised is None or promised in there else [promised, *there]


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def _write_all(temporary: Path, snapshot: Snapshot) -> None:
    """Every file of a checkpoint, flushed; the manifest last, so that its presence vouches for the rest."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    mx.eval(snapshot.tensors)
    for stem, tensors in snapshot.tensors.items():
        files.write_synced(temporary / f"{stem}.safetensors", lambda f, t=tensors: mx.save_safetensors(f, t))
    _write_json(temporary / "state.json", snapshot.state)
    _write_json(temporary / "manifest.json", _manifest(temporary, snapshot))
    files.sync_folder(temporary)


def _manifest(temporary: Path, snapshot: Snapshot) -> dict[str, Any]:
    tensors = {
        stem: {name: tensor_digest(array) for name, array in sorted(arrays.items())}
        for stem, arrays in snapshot.tensors.items()
    }
    manifest = {
        "format": 1,
        "step": snapshot.step,
        "pinned": snapshot.pinned,
        "files": {p.name: file_digest(p) for p in sorted(temporary.iterdir())},
        "roots": {stem: root_digest(digests) for stem, digests in tensors.items()},
        "tensors": tensors,
    }
    return {**manifest, "self": _self_digest(manifest)}


def _publish(temporary: Path, final: Path) -> None:
    """Give the finished folder its name. One that has it already (a step reached twice) makes room first."""
    if final.exists():
        _remove(final)
    os.rename(temporary, final)
    files.sync_folder(final.parent)


def _prune(folder: Path, keep: int) -> None:
    there = list(steps(folder).values())
    for path in there[:-keep]:
        if path != pointer(folder, "BEST") and not _is_pinned(path):
            _remove(path)


def _is_pinned(path: Path) -> bool:
    try:
        return bool(_read_manifest(path)["pinned"])
    except (OSError, ValueError, KeyError):
        return False


def _remove(path: Path) -> None:
    """Renamed first: a crash in the middle leaves a leftover to clean, not a checkpoint that looks damaged."""
    trash = path.with_name(f"{path.name}.old.tmp-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    shutil.rmtree(trash)


def _write_json(path: Path, value: Any) -> None:
    files.write_synced(path, lambda f: f.write(json.dumps(value, indent=1, allow_nan=False).encode()))


def _self_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises OSError or ValueError unless it is intact and of this folder."""
    manifest = json.loads((path / "manifest.json").read_text())
    own = manifest.pop("self", None) if isinstance(manifest, dict) else None
    if own is None or own != _self_digest(manifest):
        raise ValueError("manifest.json was changed after it was written")
    if path.name != f"step_{manifest['step']:08d}":
        raise ValueError(f"its manifest is of step {manifest['step']}")
    return manifest


def _verify_file(path: Path, expected: str) -> None:
    got = file_digest(path)
    if got != expected:
        raise ValueError(f"{path.name} has sha256 {got[:12]}, its manifest says {expected[:12]}")


def _read_tensors(path: Path, stem: str, digests: dict[str, str]) -> Tensors:
    """Load, force (mx.load is lazy, and the file may be replaced) and compare each tensor with its digest."""
    tensors = mx.load(str(path / f"{stem}.safetensors"))
    mx.eval(tensors)
    if tensors.keys() != digests.keys():
        raise ValueError(
            f"{stem} has other tensors than its manifest: {sorted(tensors.keys() ^ digests.keys())}"
        )
    for name, array in tensors.items():
        if tensor_digest(array) != digests[name]:
            raise ValueError(f"tensor {name} of {stem} is not the one that was saved")
    return tensors


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON ({error})"
    if isinstance(error, KeyError):
        return f"its manifest has no {error}"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn a refusal of the file system into one line: where, why, what to do."""
    try:
        yield
    except OSError as e:
        advice = _ADVICE.get(e.errno, "choose a folder that you may write to")
        raise CheckpointError(
            f"cannot write a checkpoint in {folder}: {e.strerror or e}; {advice}, then continue with --resume; "
            "the checkpoints already there are untouched"
        ) from e
