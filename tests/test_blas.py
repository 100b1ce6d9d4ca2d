"""The fast BLAS: it wins, it is right, it can be refused, and what goes wrong is told and never raised."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kssm_mlx import _blas

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")

ROOT = Path(__file__).parents[1]

REPORT = """
import json, sys, time
{before}
import kssm_mlx
from kssm_mlx import _blas
import mlx.core as mx
import numpy as np

def rate(n=512):
    a = mx.random.normal((n, n), key=mx.random.key(0))
    times = []
    for _ in range(4):
        start = time.process_time(); mx.eval(a @ a); times.append(time.process_time() - start)
    return 2 * n**3 / min(times[1:]) / 1e9

def error(kind):
    r = np.random.default_rng(0)
    a, b = (r.standard_normal(s) + (1j * r.standard_normal(s) if "complex" in kind else 0) for s in ((65, 129), (129, 33)))
    with mx.stream(mx.cpu):
        got = mx.array(a.astype(kind), getattr(mx, kind)) @ mx.array(b.astype(kind), getattr(mx, kind))
        got_t = mx.array(b.T.astype(kind), getattr(mx, kind)) @ mx.array(a.T.astype(kind), getattr(mx, kind))
        mx.eval(got, got_t)
    return float(max(abs(np.array(got) - a @ b).max(), abs(np.array(got_t).T - a @ b).max()))

s = _blas.status()
print(json.dumps({{"library": s.library, "how": s.how, "why": s.why, "fast": s.fast, "rate": rate(),
                  "errors": {{k: error(k) for k in ("float32", "float64", "complex64")}}}}))
"""  # noqa: E501


def report(before: str = "", **environment: str) -> dict:
    """What a fresh process says about its BLAS, with `environment` changed and `before` run first.

    One thread, timed by the processor's clock: other work on the machine does not change the rate.
    """
    run = subprocess.run(
        [sys.executable, "-c", REPORT.format(before=before)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        cwd=Path(__file__).parents[1],
        check=True,
    )
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def bundled() -> dict:
    return report(KSSM_BLAS="off")


@pytest.fixture
def without_system_library(monkeypatch):
    monkeypatch.setattr(_blas, "_system", lambda: None)
    monkeypatch.setattr(_blas, "_status", _blas.status())
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k != "mlx.core"})


def test_faster_and_right(bundled):
    fast = report()
    assert fast["fast"] and fast["library"].startswith("OpenBLAS")
    assert fast["rate"] > 3 * bundled["rate"]
    for r in (fast, bundled):
        assert r["errors"]["float32"] < 1e-4
        assert r["errors"]["complex64"] < 1e-4
        assert r["errors"]["float64"] < 1e-12


STAND_IN = """
#include <dlfcn.h>
__attribute__((constructor)) static void bind() {
  void* openblas = dlopen("PATH", RTLD_NOW | RTLD_LOCAL);
  kssm_sgemm = (sgemm_t)dlsym(openblas, "scipy_cblas_sgemm");
  kssm_dgemm = (dgemm_t)dlsym(openblas, "scipy_cblas_dgemm");
  kssm_cgemm = (cgemm_t)dlsym(openblas, "scipy_cblas_cgemm");
}
extern "C" const char* openblas_get_config() { return "OpenBLAS 9.9 STAND_IN"; }
extern "C" const char* openblas_get_corename() { return "Anything"; }
"""


@pytest.mark.parametrize("source, system", [(_blas.SOURCE + STAND_IN, True), ("int nothing;", False)])
def test_the_system_library_comes_first_if_it_has_cblas(tmp_path, bundled, source, system):
    (tmp_path / "a.cpp").write_text(source.replace("PATH", str(_blas._wheel_library())))
    command = [
        "g++",
        "-std=c++17",
        "-fPIC",
        "-shared",
        "-o",
        tmp_path / "libopenblas.so.0",
        tmp_path / "a.cpp",
    ]
    subprocess.run(command, check=True, capture_output=True)  # #pragma once in a file of its own
    told = report(LD_LIBRARY_PATH=str(tmp_path))
    assert (told["how"] == "system libopenblas.so.0") is system
    assert (told["library"] == "OpenBLAS 9.9 Anything") is system
    assert told["fast"]
    assert told["rate"] > 3 * bundled["rate"]
    assert told["errors"]["float64"] < 1e-12


def test_opt_out(bundled):
    assert not bundled["fast"]
    assert "KSSM_BLAS=off" in bundled["why"]


def test_too_late_is_told():
    late = report(before="import mlx.core")
    assert not late["fast"]
    assert "too late: mlx was imported before kssm_mlx" in late["why"]


def test_the_wheel_is_compiled_once_into_a_private_folder(tmp_path, without_system_library, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _blas.prefer_fast_blas()
    assert _blas.status().fast, _blas.status()
    assert "scipy-openblas32" in _blas.status().how
    (library,) = (tmp_path / "kssm-mlx").iterdir()  # no leftovers of the compilation
    assert stat.S_IMODE((tmp_path / "kssm-mlx").stat().st_mode) == 0o700
    monkeypatch.setenv("PATH", "")  # a second process needs no compiler
    before = library.stat().st_mtime_ns
    _blas.prefer_fast_blas()
    assert _blas.status().fast
    assert library.stat().st_mtime_ns == before


def test_processes_may_compile_at_once(tmp_path):
    command = [sys.executable, "-c", "from kssm_mlx import _blas; print(_blas._forwarding_library()._name)"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    runs = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        for _ in range(4)
    ]
    paths = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0] * 4
    assert [str(p) for p in (tmp_path / "kssm-mlx").glob("*.so")] == list(paths)


@pytest.mark.parametrize(
    "script, reason",
    [
        (None, "g++ is missing; install it"),
        ("#!/bin/sh\necho no such flag >&2\nexit 1\n", "g++ failed (no such flag)"),
    ],
)
def test_no_compiler_means_the_bundled_library(tmp_path, without_system_library, monkeypatch, script, reason):
    tools = tmp_path / "bin"
    tools.mkdir()
    if script:
        (tools / "g++").write_text(script)
        (tools / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _blas.prefer_fast_blas()
    assert not _blas.status().fast
    assert reason in _blas.status().why
    assert list((tmp_path / "cache" / "kssm-mlx").iterdir()) == []


def test_a_folder_others_can_write_to_is_refused(tmp_path, without_system_library, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "kssm-mlx").mkdir()
    (tmp_path / "kssm-mlx").chmod(0o777)
    _blas.prefer_fast_blas()
    assert "writable only by you" in _blas.status().why and _blas.status().why.endswith("delete it")


def test_an_impossible_folder_is_told(tmp_path, without_system_library, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _blas.prefer_fast_blas()
    assert "set XDG_CACHE_HOME" in _blas.status().why


def test_a_damaged_library_is_told(tmp_path, without_system_library, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_blas, "_compile", lambda path: path.write_bytes(b"not a library"))
    _blas.prefer_fast_blas()
    assert not _blas.status().fast
    assert "it was deleted and is built again next time" in _blas.status().why


def test_without_either_library(without_system_library, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _blas.prefer_fast_blas()
    assert "pip install scipy-openblas32" in _blas.status().why


def test_surprises_are_told_and_not_raised(without_system_library, monkeypatch):
    monkeypatch.setattr(_blas, "_wheel_library", lambda: 1 / 0)
    _blas.prefer_fast_blas()
    assert "ZeroDivisionError" in _blas.status().why


def test_openblas_stays_on_the_calling_thread_and_the_environment_is_left_alone(monkeypatch):
    for name in _blas.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    seen = []
    told = lambda *a: seen.append({n: os.environ.get(n) for n in _blas.THREAD_VARIABLES})  # noqa: E731
    monkeypatch.setattr(_blas.ctypes, "CDLL", told)
    _blas._load("any")
    assert seen == [{"OPENBLAS_NUM_THREADS": "1", "GOTO_NUM_THREADS": None, "OMP_NUM_THREADS": None}]
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    "told, threads",
    [({}, 6), ({"KSSM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3), ({"OMP_NUM_THREADS": "5"}, 5)],
)
def test_how_many_threads(told, threads, monkeypatch):
    for name in ("KSSM_THREADS", *_blas.THREAD_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_blas, "physical_cores", lambda: 6)
    assert _blas.threads() == threads


PIECES = """
import hashlib, sys
import kssm_mlx
import mlx.core as mx
import numpy as np

sums, worst = [], 0.0
for m, n, k in [(515, 300, 40), (40, 700, 513), (2048, 129, 64), (3, 5000, 260), (129, 128, 1024)]:
    a, b = (mx.random.normal(s, key=mx.random.key(i)) for i, s in enumerate([(m, k), (k, n)]))
    exact = np.array(a, np.float64) @ np.array(b, np.float64)
    at, bt = mx.contiguous(a.T).T, mx.contiguous(b.T).T  # read as transposed matrices
    for x in (a @ b, at @ b, a @ bt, at @ bt):
        worst = max(worst, float(abs(np.array(x) - exact).max() / k**0.5))
        sums.append(np.array(x).tobytes())
print(hashlib.sha256(b"".join(sums)).hexdigest(), worst)
"""


def test_pieces_of_a_product_are_right_and_the_same_on_any_number_of_threads():
    found = set()
    for threads in ("1", "2", "5"):
        run = subprocess.run(
            [sys.executable, "-c", PIECES],
            capture_output=True,
            text=True,
            env={**os.environ, "KSSM_THREADS": threads},
            cwd=Path(__file__).parents[1],
            check=True,
        )
        bits, worst = run.stdout.split()
        assert float(worst) < 1e-5
        found.add(bits)
    assert len(found) == 1


@pytest.mark.parametrize("threads", [1, 4])
def test_a_product_has_as_many_threads_as_it_is_told(threads):
    """Those beside the caller's begin with the first product that is worth it, and not before."""
    code = (
        "import os, kssm_mlx, mlx.core as mx\n"
        "tasks = lambda: len(os.listdir('/proc/self/task'))\n"
        "a = mx.ones((1024, 256)); mx.eval(a, mx.ones((2, 3)) @ mx.ones((3, 2))); before = tasks()\n"
        "mx.eval(a @ a.T); print(tasks() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "KSSM_THREADS": str(threads)},
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert int(run.stdout) == threads - 1


def test_the_system_library_serves_without_a_compiler(monkeypatch):
    """Unsplit: on one thread, and the status says why."""
    library = _blas._load(str(_blas._wheel_library()))
    names = {f"cblas_{n}": getattr(library, f"scipy_cblas_{n}") for n in _blas.GEMMS}
    stand_in = type("Library", (), {**names, "openblas_get_config": None})()
    monkeypatch.setattr(_blas, "_load", lambda name: stand_in)
    monkeypatch.setattr(_blas, "_describe", lambda *a: "OpenBLAS")
    seen = []
    monkeypatch.setattr(_blas.ctypes, "CDLL", lambda *a: seen.append(a))

    def no_compiler():
        raise RuntimeError("g++ is missing")

    monkeypatch.setattr(_blas, "_forwarding_library", no_compiler)
    status = _blas._system()
    assert seen == [("libopenblas.so.0", _blas.ctypes.RTLD_GLOBAL)]
    assert status.fast
    assert status.why == "on one thread: g++ is missing"


def test_hyperthreads_count_once(monkeypatch):
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: siblings.keys())
    monkeypatch.setattr(Path, "read_text", lambda self: siblings[int(self.parts[5].removeprefix("cpu"))])
    monkeypatch.setattr(_blas, "_quota", lambda: 8)
    assert _blas.physical_cores() == 2
    monkeypatch.setattr(_blas, "_quota", lambda: 1)
    assert _blas.physical_cores() == 1


@pytest.mark.parametrize(
    "granted, cores",
    [("200000 100000", 2), ("150000 100000", 2), ("max 100000", sys.maxsize), ("", sys.maxsize)],
)
def test_the_quota_of_a_container(granted, cores, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self: granted)
    assert _blas._quota() == cores


def first_import(path: Path) -> str:
    """Whichever of mlx and what loads the BLAS for it a file imports first, "" for neither."""
    for node in ast.parse(path.read_text("utf-8")).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
        for name in names:
            if (package := name.split(".")[0]) in ("mlx", "mlx_lm", "kssm_mlx"):
                return package
    return ""


def programs(root: Path) -> list[Path]:
    return [
        path
        for folder in ("kssm_mlx", "tests", "benchmarks", "examples")
        for path in sorted((root / folder).rglob("*.py"))
        if "__main__" in path.read_text("utf-8")
    ]


def test_programs_load_the_fast_library_before_mlx():
    """Else their matrix products run on the reference BLAS in mlx's wheel, many times slower."""
    assert [path.name for path in programs(ROOT) if first_import(path).startswith("mlx")] == []


def test_a_program_that_begins_with_mlx_is_seen(tmp_path):
    (tmp_path / "one.py").write_text("import sys\nimport mlx.core as mx\nimport kssm_mlx\n")
    (tmp_path / "two.py").write_text("from kssm_mlx import files\nfrom mlx.utils import tree_map\n")
    assert [first_import(tmp_path / name) for name in ("one.py", "two.py")] == ["mlx", "kssm_mlx"]
