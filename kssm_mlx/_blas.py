"""Make a fast BLAS win on Linux, before mlx is imported.

The Linux wheel of mlx bundles the reference BLAS: one thread, no vector instructions, some 30 times slower
than OpenBLAS. It looks up three functions by name when it is loaded, so whoever defines `cblas_sgemm`,
`cblas_dgemm` and `cblas_cgemm` in the process first, wins. Two ways to be first, both optional:

1. the system's `libopenblas.so.0`;
2. the `scipy-openblas32` wheel, whose names carry a prefix.

Before either of them stands a library of three functions that cut a product into pieces for several threads
(`_native/gemm.cpp`). It is compiled once with the g++ that `mx.compile` needs anyway, and kept in the user's
cache folder. Without g++ the system's library is used as it is.

Nothing here raises: on any failure the bundled BLAS stays and `status()` says why. `KSSM_BLAS=off` opts out.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from kssm_mlx._caches import open_library, private_folder

NATIVE = Path(__file__).parent / "_native"
SOURCE = (NATIVE / "team.h").read_text() + (NATIVE / "gemm.cpp").read_text()
GEMMS = ("sgemm", "dgemm", "cgemm")
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Blas:
    """Which library multiplies mlx's matrices on this CPU.

    fast: False only where the slow bundled library is in use and something can be done about it.
    """

    library: str
    how: str
    why: str
    fast: bool


_status = Blas("unknown", "prefer_fast_blas() has not run", "", False)


def status() -> Blas:
    """What `prefer_fast_blas` did."""
    return _status


def prefer_fast_blas() -> None:
    """Load OpenBLAS so that mlx binds to it; see `status()` for the outcome. Never raises."""
    global _status
    try:
        _status = _choose()
    except RuntimeError as reason:
        _status = _keep_bundled_blas(str(reason))
    except Exception as error:  # a slow matrix product is better than no import
        _status = _keep_bundled_blas(f"{type(error).__name__}: {error}")


def _keep_bundled_blas(why: str) -> Blas:
    return Blas("reference BLAS of the mlx wheel", "bundled", why, False)


def _choose() -> Blas:
    if sys.platform == "darwin":
        return Blas("Accelerate", "part of macOS", "", True)
    if sys.platform != "linux":
        return _keep_bundled_blas(f"no faster library is known for {sys.platform}")
    if os.environ.get("KSSM_BLAS", "").lower() == "off":
        return _keep_bundled_blas("KSSM_BLAS=off; unset it for the fast one")
    if "mlx.core" in sys.modules:
        return _keep_bundled_blas("too late: mlx was imported before kssm_mlx; import kssm_mlx first")
    return _system() or _in_pieces(_load(str(_wheel_library())), "scipy_", "wheel scipy-openblas32")


def _system() -> Blas | None:
    """The distribution's OpenBLAS, or None where there is none or it was built without cblas."""
    how = "system libopenblas.so.0"
    try:
        library = _load("libopenblas.so.0")
    except OSError:
        return None
    if not all(hasattr(library, f"cblas_{name}") for name in GEMMS):
        return None
    try:
        return _in_pieces(library, "", how)
    except RuntimeError as why:
        ctypes.CDLL("libopenblas.so.0", ctypes.RTLD_GLOBAL)
        return Blas(_describe(library), how, f"on one thread: {why}", True)


def _in_pieces(openblas: ctypes.CDLL, prefix: str, how: str) -> Blas:
    """An OpenBLAS behind the forwarding library.

    Raises:
        RuntimeError: the library cannot be had; the message says what to do.
    """
    gemms = {name: getattr(openblas, f"{prefix}cblas_{name}") for name in GEMMS}
    # Last, when nothing can fail any more: mlx would call a forwarding function without an address.
    forwarding = _forwarding_library()
    for name, gemm in gemms.items():
        ctypes.c_void_p.in_dll(forwarding, f"kssm_{name}").value = ctypes.cast(gemm, ctypes.c_void_p).value
    ctypes.c_int.in_dll(forwarding, "kssm_threads").value = threads()
    return Blas(_describe(openblas, prefix), how, "", True)


def _wheel_library() -> Path:
    # Found, not imported: importing the package loads the library with global symbols.
    from importlib.util import find_spec

    spec = find_spec("scipy_openblas32")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("lib/libscipy_openblas*.so"):
            return path
    raise RuntimeError("no libopenblas.so.0 and no scipy-openblas32; pip install scipy-openblas32")


def _load(name: str) -> ctypes.CDLL:
    """Load an OpenBLAS that computes in the thread that calls it; it reads their number only while it loads.

    Local symbols: scipy's own OpenBLAS uses the same names and must not be replaced by this one.
    """
    told = {name: os.environ.pop(name) for name in THREAD_VARIABLES if name in os.environ}
    os.environ[THREAD_VARIABLES[0]] = "1"
    try:
        return ctypes.CDLL(name, ctypes.RTLD_LOCAL)
    finally:
        del os.environ[THREAD_VARIABLES[0]]
        os.environ.update(told)


def threads() -> int:
    """How many threads share a matrix product or the lanes of a kernel.

    KSSM_THREADS, or what is said to OpenBLAS and OpenMP, by default the physical cores.
    """
    for name in ("KSSM_THREADS", *THREAD_VARIABLES):
        if os.environ.get(name, "").isdecimal():
            return max(1, int(os.environ[name]))
    return physical_cores()


def physical_cores() -> int:
    """Cores this process may use, hyperthreads counted once: two of them share one vector unit."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            cores.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(len(cores), _quota()))


def _quota() -> int:
    """Cores' worth of time that the control group grants, rounded up; very many without a limit."""
    try:
        granted, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return -(-int(granted) // int(period))
    except (OSError, ValueError):
        return sys.maxsize


def _describe(openblas: ctypes.CDLL, prefix: str = "") -> str:
    """Such as "OpenBLAS 0.3.34 Zen": the version and the kernels it chose for this processor."""
    config, core = (getattr(openblas, f"{prefix}openblas_get_{what}") for what in ("config", "corename"))
    config.restype = core.restype = ctypes.c_char_p
    return " ".join([*config().decode().split()[:2], core().decode()])


def _forwarding_library() -> ctypes.CDLL:
    """The compiled `SOURCE`, from the cache or fresh, with global symbols."""
    import hashlib

    digest = hashlib.sha256(f"{os.uname().machine}\n{SOURCE}".encode()).hexdigest()[:16]
    return open_library(private_folder() / f"gemm-{digest}.so", _compile, ctypes.RTLD_GLOBAL)


def _compile(library: Path) -> None:
    compile_library(SOURCE, library, "-O2", "-std=c++17")


def compile_library(code: str, library: Path, *flags: str) -> None:
    """Compile C++ beside `library` and rename it there, so that several processes may do so at once.

    Raises:
        RuntimeError: no g++, or it refused the code.
    """
    import shutil
    import subprocess
    import tempfile

    if shutil.which("g++") is None:
        raise RuntimeError(
            "g++ is missing; install it (apt install g++): it joins OpenBLAS to MLX, and mx.compile needs it"
        )
    with tempfile.TemporaryDirectory(dir=library.parent) as work:
        source, result = Path(work, "source.cpp"), Path(work, "library.so")
        source.write_text(code)
        # Libraries are looked into for what stands before them.
        command = ["g++", "-fPIC", "-shared", "-o", str(result), str(source), *flags]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if run.returncode != 0:
            reason = next(iter(run.stderr.strip().splitlines()), f"exit code {run.returncode}")
            raise RuntimeError(f"g++ failed ({reason}); try it by hand")
        os.replace(result, library)
