"""Is this machine fit: right products, a fast BLAS, a compiler that compiles, enough open files.

These checks read the facts of `environment.py` and measure what can only be measured; `kssm doctor` shows
them. A "warn" costs time or digits and says what to do about it; a "fail" means that numbers are wrong here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.base import Check

# float32 products of length 129 are good to some 1e-6 of the largest entry, TF32 ones to 1e-3.
FLOAT32_ERROR, TF32_ERROR = 1e-5, 5e-3
ENOUGH_FILES = 1024
# The wheels that bring libmlx; two of them overwrite each other's files.
BACKENDS = ("mlx-cpu", "mlx-metal", "mlx-cuda-12", "mlx-cuda-13")


def examine(facts: dict[str, Any]) -> list[Check]:
    """The verdicts on this machine, given `environment.facts()`."""
    return [
        products(),
        blas(facts["blas"]),
        compilation(facts),
        backends(facts["packages"]),
        tensor_float(facts),
        open_files(facts["open_files"]),
    ]


def measure() -> dict[str, float]:
    """Quick rates of the default device: float32 products in GFLOP/s, copies in GB/s read plus written."""
    n, size = 1024, 1 << 24
    a = mx.random.normal((n, n), key=mx.random.key(0))
    x = mx.zeros(size)
    return {
        "gemm_gflops": 2 * n**3 / seconds(lambda: a @ a) / 1e9,
        "copy_gbytes_per_second": 2 * 4 * size / seconds(lambda: x + 1) / 1e9,
    }


def seconds(run: Callable[[], mx.array | list[mx.array]], repeats: int = 3) -> float:
    """The shortest of a few runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        mx.eval(run())
        times.append(time.perf_counter() - start)
    return min(times[1:])


def products() -> Check:
    """H1: mlx's float32 product against numpy's float64, on a shape no blocking divides."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((65, 129)), random.standard_normal((129, 33))
    truth = a @ b
    got = np.array(mx.matmul(mx.array(a, mx.float32), mx.array(b, mx.float32)))
    error = float(np.abs(got - truth).max() / np.abs(truth).max())
    # NaN compares false, so it fails as it should.
    grade = "pass" if error <= FLOAT32_ERROR else "warn" if error <= TF32_ERROR else "fail"
    fix = {
        "pass": "",
        "warn": "set MLX_ENABLE_TF32=0 before mlx is imported for full float32",
        "fail": "matrix products are wrong: try KSSM_BLAS=off, then reinstall mlx",
    }[grade]
    return _check("H1", "matrix product", grade, f"error {error:.1e}", f"<= {FLOAT32_ERROR:g}", fix)


def blas(status: dict[str, Any]) -> Check:
    """H2: the CPU's matrix library."""
    got = f"{status['library']} ({status['how']})"
    return _judge("H2", "fast BLAS", status["fast"], got, "OpenBLAS or Accelerate", status["why"])


def compilation(facts: dict[str, Any]) -> Check:
    """H3: mx.compile compiles, instead of silently running function by function."""
    fix = "install g++, then run again"
    if "MLX_DISABLE_COMPILE" in facts["switches"]:
        fix = "unset MLX_DISABLE_COMPILE; its presence alone disables, even with the value 0"
    elif facts["compiler"]:
        fix = f"{facts['compiler']} is there but does not compile; try it by hand"
    got = "traced once" if facts["compiles"] else "the function runs uncompiled at every call"
    return _judge("H3", "mx.compile", facts["compiles"], got, "traced once", fix)


def backends(packages: dict[str, str]) -> Check:
    """H4: exactly one backend, of mlx's own version."""
    found = [name for name in BACKENDS if name in packages]
    got = ", ".join(f"{name} {packages[name]}" for name in found) or "none"
    ok = [packages[name] for name in found] == [packages.get("mlx")]
    expected = f"one of version {packages.get('mlx')}"
    return _judge("H4", "mlx backend", ok, got, expected, "pip uninstall the others, then reinstall mlx[cpu]")


def tensor_float(facts: dict[str, Any]) -> Check:
    """H5: float32 means float32; TF32 only exists on GPUs."""
    rounds = facts["tf32"] and facts["device"]["type"] == "gpu"
    got = "TF32 allowed" if rounds else "float32"
    return _judge("H5", "precision", not rounds, got, "float32", "set MLX_ENABLE_TF32=0 to compare numbers")


def open_files(limit: dict[str, int]) -> Check:
    """H6: sharded weights and token files are all open at once."""
    soft = limit["soft"]
    ok = soft == -1 or soft >= ENOUGH_FILES
    return _judge("H6", "open files", ok, str(soft), f">= {ENOUGH_FILES}", f"ulimit -n {4 * ENOUGH_FILES}")


def _judge(id: str, title: str, ok: bool, got: str, expected: str, fix: str) -> Check:
    return _check(id, title, "pass" if ok else "warn", got, expected, "" if ok else fix)


def _check(id: str, title: str, verdict: str, got: str, expected: str, fix: str) -> Check:
    return Check(id, title, "P", verdict, got, expected, fix)
