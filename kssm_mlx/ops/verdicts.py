"""The record of verdicts on kernels, in the user's cache folder, and what a verdict holds for."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from kssm_mlx import files
from kssm_mlx._caches import private_folder
from kssm_mlx.ops import gpu, proof
from kssm_mlx.ops.dialects import cpp, macros, native
from kssm_mlx.ops.proof import Verdict
from kssm_mlx.parsing import parse_json

# Where an op's files do not begin with its name.
MADE_OF = {
    "ssd": ["ssd", "selective_scan"],
    "ball_scan": ["ball"],
    "ball_wells": ["ball"],
    "norms": ["norm"],
    "elementary": ["elementary", "biased_sigmoid"],
}


def identity(op: str, **variant: int) -> str:
    """What a verdict holds for: these sources, so compiled, on this device and system, with this MLX."""
    device = mx.device_info().get("device_name", "")
    return _identity(op, tuple(variant.items()), gpu.dialect(), device, _system())


@cache
def _identity(op: str, variant: tuple[tuple[str, int], ...], *place: str | None) -> str:
    compiled = [f"{name}={value}" for name, value in sorted(variant)]
    return " ".join(map(str, [op, *compiled, _digest(op), *place, "mlx", version("mlx")]))


@cache
def _system() -> str:
    """The version that the driver and its compiler come with."""
    mac = platform.mac_ver()[0]
    return f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"


@cache
def _digest(op: str) -> str:
    """Of everything the kernels of `op` are made of."""
    own = (path for name in MADE_OF.get(op, [op]) for path in gpu.FOLDER.glob(f"{name}*"))
    shared = [
        gpu.FOLDER / name for name in ("planar.inc", "spatial.inc", "packs.inc", "bridge.cpp", "in_time.py")
    ]
    modules = [Path(str(module.__file__)) for module in (macros, gpu, cpp, native, proof)]
    sources = b"".join(path.read_bytes() for path in [*modules, *shared, *sorted(own)])
    return hashlib.sha256(sources).hexdigest()[:12]


def read_verdicts() -> dict[str, Verdict]:
    """Verdicts of earlier `kssm doctor` runs by identity; none where the record cannot be read."""
    try:
        found = parse_json(_record().read_text())
        return {name: Verdict(**verdict) for name, verdict in found.items()}
    except (RuntimeError, OSError, ValueError, TypeError, AttributeError):
        return {}


def record(verdicts: dict[str, Verdict]) -> Path:
    """Remember what `kssm doctor` found, by identity, in place of older verdicts of the same.

    Raises: RuntimeError when the user's cache folder cannot be had.
    """
    kept = {**read_verdicts(), **verdicts}
    files.replace(_record(), json.dumps({name: asdict(v) for name, v in kept.items()}, indent=1))
    return _record()


def _record() -> Path:
    return private_folder() / "kernels.json"
