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

from kssm_mlx.checks.core.registry import DOCTOR, Check, check, verdict

# float32 products of length 129 are good to some 1e-6 of the largest entry, TF32 ones to 1e-3.
FLOAT32_ERROR, TF32_ERROR = 1e-5, 5e-3
ENOUGH_FILES = 1024
# The wheels that bring libmlx; two of them overwrite each other's files.
BACKENDS = ("mlx-cpu", "mlx-metal", "mlx-cuda-12", "mlx-cuda-13")


def examine_machine(facts: dict[str, Any]) -> list[Check]:
    """H1 to H6 on this machine, given `environment.facts()`."""
    return [run(facts) for run in (products, blas, compilation, backends, tensor_float, open_files)]


def measure_rates() -> dict[str, float]:
    """Quick rates of the default device: float32 products in GFLOP/s, copies in GB/s read plus written."""
    n, size = 1024, 1 << 24
    a = mx.random.normal((n, n), key=mx.random.key(0))
    x = mx.zeros(size)
    return {
        "gemm_gflops": 2 * n**3 / time_shortest(lambda: a @ a) / 1e9,
        "copy_gbytes_per_second": 2 * 4 * size / time_shortest(lambda: x + 1) / 1e9,
    }


def time_shortest(run: Callable[[], mx.array | list[mx.array]], repeats: int = 3) -> float:
    """The shortest of a few runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        mx.eval(run())
        times.append(time.perf_counter() - start)
    return min(times[1:])


@check("H1", level=DOCTOR, title="matrix product", source="docs/background/mlx.md#fast-blas")
def products(facts: dict[str, Any]) -> Check:
    """mlx's float32 product of [65, 129] and [129, 33], which no blocking divides, against numpy's
    float64; max |Δ| relative to the largest entry.

    Threshold: 1e-5, some ten times the rounding of float32; warns up to 5e-3, which TF32 explains; beyond,
    numbers are wrong here and so is everything built on them. NaN fails.
    Caught: float32 products of CUDA and of Apple's M5, good to 1e-3 because TF32 is on unless switched off.
    Sabotage: a product off by 1e-3, by 0.1 and by NaN.
    """
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
    return verdict("H1", grade, f"error {error:.1e}", f"<= {FLOAT32_ERROR:g}", fix)


@check("H2", level=DOCTOR, title="fast BLAS", source="docs/background/mlx.md#fast-blas")
def blas(facts: dict[str, Any]) -> Check:
    """the library that serves the CPU's matrix products, as found when mlx was imported.

    Threshold: OpenBLAS or Accelerate; any other costs time, no digits, so it warns.
    Caught: the wheel of mlx-cpu, whose reference BLAS does 4.6 GFLOP/s where OpenBLAS does 185.
    Sabotage: facts of a machine with the bundled library.
    """
    status = facts["blas"]
    got = f"{status['library']} ({status['how']})"
    return _warn_unless("H2", status["fast"], got, "OpenBLAS or Accelerate", status["why"])


@check("H3", level=DOCTOR, title="mx.compile", source="docs/background/mlx.md#compilation")
def compilation(facts: dict[str, Any]) -> Check:
    """a function under mx.compile, called twice, is traced once.

    Threshold: once. Without a compiler mlx runs function by function and says nothing; it warns.
    Caught: MLX_DISABLE_COMPILE=0, which disables: the presence of the name alone does.
    Sabotage: facts of a machine without g++, with the switch set, and with a g++ that does not compile.
    """
    fix = "install g++, then run again"
    if "MLX_DISABLE_COMPILE" in facts["switches"]:
        fix = "unset MLX_DISABLE_COMPILE; its presence alone disables, even with the value 0"
    elif facts["compiler"]:
        fix = f"{facts['compiler']} is there but does not compile; try it by hand"
    got = "traced once" if facts["compiles"] else "the function runs uncompiled at every call"
    return _warn_unless("H3", facts["compiles"], got, "traced once", fix)


@check("H4", level=DOCTOR, title="mlx backend", source="docs/background/mlx.md#back-ends")
def backends(facts: dict[str, Any]) -> Check:
    """the installed wheels that bring libmlx, and their versions.

    Threshold: exactly one, of mlx's own version.
    Caught: mlx-cpu and mlx-cuda side by side, which overwrite each other's libmlx.so; the one installed last
    is what runs.
    Sabotage: facts with two wheels, with one of another version, and with none.
    """
    packages = facts["packages"]
    found = [name for name in BACKENDS if name in packages]
    got = ", ".join(f"{name} {packages[name]}" for name in found) or "none"
    ok = [packages[name] for name in found] == [packages.get("mlx")]
    expected = f"one of version {packages.get('mlx')}"
    return _warn_unless("H4", ok, got, expected, "pip uninstall the others, then reinstall mlx[cpu]")


@check("H5", level=DOCTOR, title="precision", source="docs/background/mlx.md#precision")
def tensor_float(facts: dict[str, Any]) -> Check:
    """whether float32 products may be rounded to TF32: MLX_ENABLE_TF32, on a GPU.

    Threshold: not allowed where numbers are compared; elsewhere it is speed for digits, so it warns.
    Caught: float32 tests of state-space models that fail on an M5, by 1e-3, since TF32 is on there.
    Sabotage: facts of a GPU with TF32 on.
    """
    rounds = facts["tf32"] and facts["device"]["type"] == "gpu"
    got = "TF32 allowed" if rounds else "float32"
    return _warn_unless("H5", not rounds, got, "float32", "set MLX_ENABLE_TF32=0 to compare numbers")


@check("H6", level=DOCTOR, title="open files", source="docs/background/mlx.md#open-files")
def open_files(facts: dict[str, Any]) -> Check:
    """the soft limit of open files (RLIMIT_NOFILE); sharded weights and token files are all open at once.

    Threshold: 1,024 or none.
    Caught: nothing yet; macOS starts shells with 256.
    Sabotage: a limit of 256.
    """
    soft = facts["open_files"]["soft"]
    ok = soft == -1 or soft >= ENOUGH_FILES
    return _warn_unless("H6", ok, str(soft), f">= {ENOUGH_FILES}", f"ulimit -n {4 * ENOUGH_FILES}")


def _warn_unless(id: str, ok: bool, got: str, expected: str, fix: str) -> Check:
    return verdict(id, "pass" if ok else "warn", got, expected, fix)
