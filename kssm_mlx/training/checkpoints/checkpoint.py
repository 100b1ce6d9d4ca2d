"""Checkpoints that a crash cannot half-write and that damage cannot pass through unseen.

    checkpoints/step_00000200/   model.safetensors  optimizer.safetensors  state.json  manifest.json
                                 (adapters.safetensors for the adapters of a base model)
    checkpoints/LATEST, BEST     names of folders, for people and scripts

`save` writes into `step_00000200.tmp-<pid>`, flushes every file to disk, writes the manifest last, renames
the folder, flushes the parent, and only then moves LATEST and BEST and removes what is no longer kept.
`load_latest` takes the newest checkpoint that verifies and says which newer ones did not, and why.

Source: docs/background/mlx.md#checkpoints.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from kssm_mlx import files
from kssm_mlx.errors import CheckpointError
from kssm_mlx.files import explain_write_errors
from kssm_mlx.parsing import parse_json
from kssm_mlx.runs import lock
from kssm_mlx.runs.layout import BEST, LATEST, list_checkpoints, read_pointer, step_name
from kssm_mlx.training.checkpoints import manifest
from kssm_mlx.training.checkpoints.manifest import Tensors

_LEFTOVER = re.compile(r".+\.tmp-(\d+)")


@dataclass(frozen=True)
class Snapshot:
    """Everything a run needs to go on.

    tensors: file stem ("model" or "adapters", "optimizer") -> flat name -> array; state: plain JSON values;
    pinned: why this checkpoint is never pruned ("SIGTERM"), or "".
    """

    step: int
    tensors: dict[str, Tensors]
    state: dict[str, Any]
    pinned: str = ""


@dataclass(frozen=True)
class Loaded:
    """The newest good checkpoint, and why each newer one was passed over."""

    path: Path
    snapshot: Snapshot
    skipped: dict[Path, str]


def save(folder: str | Path, snapshot: Snapshot, *, keep: int = 3, best: bool = False) -> Path:
    """Write one checkpoint, whole or not at all; then prune to the last `keep`, the best and the pinned.

    Raises: CheckpointError (full disk, no permission); what was there before is untouched.
    """
    folder = Path(folder)
    final = folder / step_name(snapshot.step)
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    with explain_write_errors("a checkpoint", folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_all(temporary, snapshot)
            _publish_folder(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        # Only now, when the folder is whole, has its name and is on disk.
        write_pointer(folder, LATEST, final)
        if best:
            write_pointer(folder, BEST, final)
        _prune_checkpoints(folder, keep)
    return final


def load(path: str | Path, stems: Iterable[str] | None = None) -> Snapshot:
    """Read and verify one checkpoint; `stems=["model"]` reads only the weights. Nothing lazy is returned.

    Raises: CheckpointError that says what is damaged.
    """
    path = Path(path)
    try:
        described = manifest.read_manifest(path)
        manifest.verify_file(path, "state.json", described)
        state = parse_json((path / "state.json").read_bytes())
        tensors = {
            stem: manifest.read_tensors(path, stem, described)
            for stem in (described["tensors"] if stems is None else stems)
        }
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise CheckpointError(f"checkpoint {path} is damaged: {_describe_reason(e)}") from None
    return Snapshot(described["step"], tensors, state, described["pinned"])


def load_latest(folder: str | Path) -> Loaded | None:
    """The newest checkpoint that verifies; None if the folder has none at all.

    Raises: CheckpointError if there are checkpoints and none is good.
    """
    skipped: dict[Path, str] = {}
    for path in _list_candidates(Path(folder)):
        try:
            return Loaded(path, load(path), skipped)
        except CheckpointError as e:
            skipped[path] = str(e)
    if skipped:
        raise CheckpointError(
            f"no usable checkpoint in {folder} ({'; '.join(skipped.values())}); start again in another folder"
        )
    return None


def write_pointer(folder: str | Path, name: str, to: Path) -> None:
    """Make LATEST or BEST name the checkpoint `to`."""
    files.replace(Path(folder) / name, to.name + "\n")


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint to `*.damaged`, so that a resumed run can reach its step again."""
    aside = path.with_name(f"{path.name}.damaged")
    with explain_write_errors("a checkpoint", path.parent):
        shutil.rmtree(aside, ignore_errors=True)
        if path.exists():
            os.rename(path, aside)


def remove_leftovers(folder: str | Path) -> list[str]:
    """Remove what dead writers left behind, and return its names. Call it while holding the run's lock."""
    removed = []
    for path in sorted(
        p for p in Path(folder).glob("*") if (m := _LEFTOVER.fullmatch(p.name)) and _is_dead(m[1])
    ):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        removed.append(path.name)
    return removed


def _is_dead(pid: str) -> bool:
    """This process has not begun to write, so its own id is a dead namesake's (usual in containers)."""
    return int(pid) == os.getpid() or not lock.is_alive(int(pid))


def _list_candidates(folder: Path) -> list[Path]:
    """Newest first, and ahead of them a checkpoint that LATEST promises but that is not there."""
    there = list(list_checkpoints(folder).values())[::-1]
    promised = read_pointer(folder, LATEST)
    return there if promised is None or promised in there else [promised, *there]


def _write_all(temporary: Path, snapshot: Snapshot) -> None:
    """Every file of a checkpoint, flushed; the manifest last, so that its presence vouches for the rest."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    mx.eval(snapshot.tensors)
    for stem, tensors in snapshot.tensors.items():
        files.write_synced(temporary / f"{stem}.safetensors", lambda f, t=tensors: mx.save_safetensors(f, t))
    _write_json(temporary / "state.json", snapshot.state)
    described = manifest.describe_checkpoint(temporary, snapshot.step, snapshot.pinned, snapshot.tensors)
    _write_json(temporary / manifest.NAME, described)
    files.sync_folder(temporary)


def _write_json(path: Path, value: Any) -> None:
    files.write_synced(path, lambda f: f.write(json.dumps(value, indent=1, allow_nan=False).encode()))


def _publish_folder(temporary: Path, final: Path) -> None:
    """Give the finished folder its name; one that has it already (a step reached twice) makes room."""
    replaced = _retire_folder(final) if final.exists() else None
    os.rename(temporary, final)
    # A rename outlives a power cut only once its folder is on disk as well.
    files.sync_folder(final.parent)
    if replaced:
        shutil.rmtree(replaced)


def _prune_checkpoints(folder: Path, keep: int) -> None:
    for path in list(list_checkpoints(folder).values())[:-keep]:
        if path != read_pointer(folder, BEST) and not _is_pinned(path):
            shutil.rmtree(_retire_folder(path))


def _is_pinned(path: Path) -> bool:
    try:
        return bool(manifest.read_manifest(path)["pinned"])
    except (OSError, ValueError, KeyError):
        return False


def _retire_folder(path: Path) -> Path:
    """Rename what is to be deleted: a crash half-way then leaves a leftover, not a damaged checkpoint."""
    trash = path.with_name(f"{path.name}.old.tmp-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    return trash


def _describe_reason(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return f"{Path(error.filename).name} is missing"
        case json.JSONDecodeError():
            return f"broken JSON ({error})"
        case KeyError():
            return f"its manifest has no {error}"
        case OSError():
            return error.strerror or str(error)
    return str(error)
