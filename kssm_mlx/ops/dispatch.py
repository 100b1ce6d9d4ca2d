"""Which form of a recurrence runs: the rule behind `impl`, and the record of kernels that may be trusted.

    "compiled"  pure MLX, everywhere
    "kernel"    the kernel; refused where the default device has none
    "auto"      the kernel where the default device has one and it is trusted there, else the compiled form

A kernel is trusted on a device once it has agreed with the compiled form on it. `kssm doctor` measures that
and writes the verdict to the user's cache folder; where no verdict stands, a GPU's kernel proves itself on a
small case when it is first wanted. The C++ dialect, which no driver translates, is trusted once it could be
built: the tests compare it on every change. What failed stays off until kernel, MLX or device change.

Kernels compute in fp32; float64 is left to the compiled forms that can do it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import mlx.core as mx

from kssm_mlx import _blas, files
from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.ops import cpp, gpu, native

IMPLS = ("auto", "compiled", "kernel")
# Their compiled form is matrix products, which run at another rate than one lane per thread.
COMPILED_BY_DEFAULT = ("ssd",)
# Elsewhere MLX's own functions are as good.
FOR_CPUS = ("elementary", "norms")
# Where an op's files do not begin with its name.
MADE_OF = {
    "ssd": ["ssd", "selective_scan"],
    "norms": ["norm"],
    "elementary": ["elementary", "biased_sigmoid"],
}
# Dialects whose kernels need not agree with the compiled form before their first use, only be there.
PROVEN = ("cpp",)


@dataclass(frozen=True)
class Verdict:
    """Whether an op's kernel agreed with its compiled form; why not, where it did not.

    error: the largest in fp32, relative to the largest value of each array.
    """

    op: str
    ok: bool
    error: float
    why: str = ""


def kernel(op: str, impl: str, like: mx.array | None = None) -> Callable | None:
    """The kernel form of `op` if `impl` asks for it, None for the compiled form.

    like: one of the arrays [B, T, ...] that are read per token.
    Raises: ConfigError for an unknown `impl`, "kernel" where the default device has none, and T = 0.
    """
    if impl not in IMPLS:
        raise ConfigError(f"impl is one of {', '.join(IMPLS)}, got {impl!r}{nearest(str(impl), IMPLS)}")
    if like is not None and like.shape[1] == 0:
        raise ConfigError(f"{op}: there is no token in an array of shape {list(like.shape)}; T must be >= 1")
    double = like is not None and like.dtype == mx.float64
    if impl == "compiled" or (impl == "auto" and (double or op in COMPILED_BY_DEFAULT)):
        return None
    if impl == "auto" and not (runs(op) and trusted(op)):
        return None
    if not runs(op):
        raise ConfigError(
            f"{op}: impl='kernel' cannot run on {mx.default_device()} ({native.why_not()}); use 'auto'"
        )
    if double:
        raise ConfigError(f"{op}: kernels compute in float32, got float64; use impl='compiled'")
    return getattr(import_module(f"kssm_mlx.ops.kernels.{op}"), op)


def runs(op: str) -> bool:
    """Whether the default device has a dialect that `op` has a kernel in."""
    return gpu.dialect() == "cpp" if op in FOR_CPUS else gpu.dialect() is not None


def trusted(op: str) -> bool:
    """Whether the kernel of `op` has agreed with the compiled form on the default device."""
    return _verdict(op, identity(op)).ok


@cache
def _verdict(op: str, identity: str) -> Verdict:
    known = recorded().get(identity)
    if known is not None:
        return known
    from kssm_mlx.ops.kernels import parity

    verdict = parity.build(op) if gpu.dialect() in PROVEN else parity.prove(op)
    if not verdict.ok:
        warnings.warn(f"{op}: the kernel is off ({verdict.why}); see kssm doctor", stacklevel=2)
    return verdict


def identity(op: str) -> str:
    """What a verdict holds for: these kernel sources on this device with this MLX."""
    device = mx.device_info().get("device_name", "")
    return f"{op} {_digest(op)} {gpu.dialect()} {device} mlx {mx.__version__}"


@cache
def _digest(op: str) -> str:
    """Of everything the kernels of `op` are made of."""
    own = (path for name in MADE_OF.get(op, [op]) for path in gpu.FOLDER.glob(f"{name}*"))
    shared = [gpu.FOLDER / name for name in ("planar.inc", "packs.inc", "bridge.cpp", "in_time.py")]
    modules = [Path(module.__file__) for module in (gpu, cpp, native)]
    sources = b"".join(path.read_bytes() for path in [*modules, *shared, *sorted(own)])
    return hashlib.sha256(sources).hexdigest()[:12]


def recorded() -> dict[str, Verdict]:
    """Verdicts of earlier `kssm doctor` runs by identity; none where the record cannot be read."""
    try:
        found = json.loads(_record().read_text())
        return {name: Verdict(**verdict) for name, verdict in found.items()}
    except (RuntimeError, OSError, ValueError, TypeError, AttributeError):
        return {}


def record(verdicts: list[Verdict]) -> Path:
    """Remember what `kssm doctor` found, in place of older verdicts of the same identity.

    Raises: RuntimeError when the user's cache folder cannot be had.
    """
    kept = {**recorded(), **{identity(v.op): v for v in verdicts}}
    files.replace(_record(), json.dumps({name: asdict(v) for name, v in kept.items()}, indent=1))
    _verdict.cache_clear()
    return _record()


def _record() -> Path:
    return _blas.private_folder() / "kernels.json"
