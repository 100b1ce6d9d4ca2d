"""The manifest of a checkpoint: what every file and tensor in it must be, and the comparison when it is read.

    {"format": 1, "step": 200, "pinned": "", "files": {"state.json": sha256, ...},
     "tensors": {"model": {"embed.weight": digest}}, "roots": {"model": digest of them all}, "self": sha256}

Files are hashed to find damage, tensors to name the one that is wrong, and the manifest hashes itself. A root
is the identity of the weights, the same in whatever order or layout they are stored.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from kssm_mlx.digest import file_digest, root_digest, tensor_digest
from kssm_mlx.parsing import parse_json
from kssm_mlx.runs.layout import step_name

NAME = "manifest.json"
Tensors = dict[str, mx.array]


def describe_checkpoint(folder: Path, step: int, pinned: str, tensors: dict[str, Tensors]) -> dict[str, Any]:
    """The manifest of the files now in `folder`, which hold `tensors`."""
    digests = {
        stem: {name: tensor_digest(array) for name, array in sorted(arrays.items())}
        for stem, arrays in tensors.items()
    }
    manifest = {
        "format": 1,
        "step": step,
        "pinned": pinned,
        "files": {p.name: file_digest(p) for p in sorted(folder.iterdir())},
        "roots": {stem: root_digest(d) for stem, d in digests.items()},
        "tensors": digests,
    }
    return {**manifest, "self": _self_digest(manifest)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises: OSError, ValueError unless it is intact and of this step."""
    manifest = parse_json((folder / NAME).read_bytes())
    own = manifest.pop("self", None) if isinstance(manifest, dict) else None
    if own is None or own != _self_digest(manifest):
        raise ValueError(f"{NAME} was changed after it was written")
    if folder.name != step_name(manifest["step"]):
        raise ValueError(f"its manifest is of step {manifest['step']}")
    return manifest


def verify_file(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Raises: OSError, ValueError unless the file holds the bytes that were written."""
    got, expected = file_digest(folder / name), manifest["files"][name]
    if got != expected:
        raise ValueError(f"{name} has sha256 {got[:12]}, its manifest says {expected[:12]}")


def read_tensors(folder: Path, stem: str, manifest: dict[str, Any]) -> Tensors:
    """The verified tensors of one file, in memory (mx.load alone reads later, from whatever is there then).

    Raises: OSError, ValueError, RuntimeError (from MLX) unless each tensor is the one that was saved.
    """
    verify_file(folder, f"{stem}.safetensors", manifest)
    # What a safetensors file loads as is always a dictionary.
    tensors = cast(Tensors, mx.load(str(folder / f"{stem}.safetensors")))
    digests = manifest["tensors"][stem]
    mx.eval(tensors)
    if other := tensors.keys() ^ digests.keys():
        raise ValueError(f"{stem} and its manifest disagree on the tensors {', '.join(sorted(other)[:3])}")
    for name, array in tensors.items():
        if tensor_digest(array) != digests[name]:
            raise ValueError(f"tensor {name} of {stem} is not the one that was saved")
    return tensors


def _self_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
