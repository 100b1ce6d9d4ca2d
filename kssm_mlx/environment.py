"""What a run ran on: versions, device, BLAS, compiler, switches and limits, as plain JSON.

Recorded in every run's manifest and judged by `kssm doctor` (checks/machine/fitness.py).
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx

from kssm_mlx import __version__, _blas

PACKAGES = (
    *("mlx", "mlx-cpu", "mlx-metal", "mlx-cuda-12", "mlx-cuda-13", "mlx-lm", "numpy", "scipy", "matplotlib"),
    *("pydantic", "safetensors", "tokenizers", "huggingface-hub", "scipy-openblas32"),
)
# Environment variables that change a number or a speed.
SWITCHES = ("MLX_ENABLE_TF32", "MLX_DISABLE_COMPILE", "KSSM_BLAS", "KSSM_THREADS", *_blas.THREAD_VARIABLES)


def facts() -> dict[str, Any]:
    """Everything about this process and machine that can change a result or its speed; JSON-able."""
    return {
        "kssm_mlx": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": packages(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": device(),
        "blas": asdict(_blas.status()),
        "compiler": shutil.which("g++"),
        "compiles": compiles(),
        "tf32": tf32(),
        "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
        "open_files": open_files(),
        "memory_limit_bytes": mx.get_memory_limit(),
        "cache_limit_bytes": cache_limit(),
    }


def packages() -> dict[str, str]:
    """Installed versions of what our numbers depend on, without importing any of it."""
    return {name: installed for name in PACKAGES if (installed := _installed_version(name))}


@cache  # of a running process it does not change, and reading it takes milliseconds
def _installed_version(name: str) -> str:
    """Empty for a package that is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def device() -> dict[str, Any]:
    """The default device and what mlx knows about it (on a Mac also its memory, in bytes)."""
    return {"type": mx.default_device().type.name, **mx.device_info()}


def compiles() -> bool:
    """Whether `mx.compile` compiles. Without g++ it silently runs the plain function at every call.

    A compiled function is traced once and then never called again, so the calls are counted.
    """
    calls = []

    def wave(x: mx.array) -> mx.array:
        calls.append(x)
        return mx.sin(x) * 2 + 1

    compiled, x = mx.compile(wave), mx.arange(4.0)
    mx.eval(compiled(x), compiled(x))
    return len(calls) == 1


def tf32() -> bool:
    """Whether float32 matrix products may be rounded to about 1e-3 (M5 and later, CUDA); mlx's default."""
    return os.environ.get("MLX_ENABLE_TF32", "1") != "0"


def open_files() -> dict[str, int]:
    """Soft and hard RLIMIT_NOFILE; -1 is unlimited."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"soft": soft, "hard": hard}


def cache_limit() -> int:
    """Bytes of freed memory mlx keeps for reuse. There is no getter, so set the largest and put it back."""
    limit = mx.set_cache_limit(mx.get_memory_limit())
    mx.set_cache_limit(limit)
    return limit


def commit() -> str | None:
    """The git commit of this package when it runs from its clone, marked "+changes" if files differ."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed copy may lie inside somebody else's repository
        return None
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if head and changed else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
