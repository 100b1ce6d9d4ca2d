"""Make a fast BLAS win on Linux, before mlx is imported.

The Linux wheel of mlx bundles the reference BLAS: one thread, no vector instructions, some 30 times slower
than OpenBLAS. It looks up three functions by name when it is loaded, so whoever defines `cblas_sgemm`,
`cblas_dgemm` and `cblas_cgemm` in the process first, wins. Two ways to be first, both optional:

1. the system's `libopenblas.so.0`, loaded with global symbols;
2. the `scipy-openblas32` wheel. Its names carry a prefix, so a library of three forwarding functions is
   compiled once with the g++ that `mx.compile` needs anyway, and kept in the user's cache folder.

Nothing here raises: on any failure the bundled BLAS stays and `status()` says why. `KSSM_BLAS=off` opts out.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = r"""
// cblas_?gemm for libmlx, forwarded to the OpenBLAS whose addresses Python stores in kssm_?gemm.
#define GEMM(name, scalar)                                                                             \
  typedef void (*name##_t)(int, int, int, int, int, int, scalar, const void*, int, const void*, int,   \
                           scalar, void*, int);                                                        \
  extern "C" name##_t kssm_##name = nullptr;                                                           \
  extern "C" void cblas_##name(int order, int ta, int tb, int m, int n, int k, scalar alpha,           \
                               const void* a, int lda, const void* b, int ldb, scalar beta, void* c,   \
                               int ldc) {                                                              \
    kssm_##name(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);                          \
  }
GEMM(sgemm, float)
GEMM(dgemm, double)
GEMM(cgemm, const void*)
"""
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
        _status = _bundled(str(reason))
    except Exception as error:  # a slow matrix product is better than no import
        _status = _bundled(f"{type(error).__name__}: {error}")


def _bundled(why: str) -> Blas:
    return Blas("reference BLAS of the mlx wheel", "bundled", why, False)


def _choose() -> Blas:
    if sys.platform == "darwin":
        return Blas("Accelerate", "part of macOS", "", True)
    if sys.platform != "linux":
        return _bundled(f"no faster library is known for {sys.platform}")
    if os.environ.get("KSSM_BLAS", "").lower() == "off":
        return _bundled("KSSM_BLAS=off; unset it for the fast one")
    if "mlx.core" in sys.modules:
        return _bundled("too late: mlx was imported before kssm_mlx; import kssm_mlx first")
    return _system() or _wheel()


def _system() -> Blas | None:
    """The distribution's OpenBLAS, or None where there is none or it was built without cblas."""
    try:
        library = _load("libopenblas.so.0", ctypes.RTLD_GLOBAL)
    except OSError:
        return None
    if not all(hasattr(library, f"cblas_{name}") for name in GEMMS):
        return None
    return Blas(_describe(library), "system libopenblas.so.0", "", True)


def _wheel() -> Blas:
    """The OpenBLAS of the `scipy-openblas32` wheel, behind the forwarding library.

    Raises:
        RuntimeError: one of the two cannot be had; the message says what to do.
    """
    # Local symbols: scipy's own OpenBLAS uses the same names and must not be replaced by this one.
    openblas = _load(str(_wheel_library()), ctypes.RTLD_LOCAL)
    gemms = {name: getattr(openblas, f"scipy_cblas_{name}") for name in GEMMS}
    # Last, when nothing can fail any more: mlx would call a forwarding function without an address.
    forwarding = _forwarding_library()
    for name, gemm in gemms.items():
        ctypes.c_void_p.in_dll(forwarding, f"kssm_{name}").value = ctypes.cast(gemm, ctypes.c_void_p).value
    return Blas(_describe(openblas, "scipy_"), "wheel scipy-openblas32", "", True)


def _wheel_library() -> Path:
    # Found, not imported: importing the package loads the library with global symbols.
    from importlib.util import find_spec

    spec = find_spec("scipy_openblas32")
    for folder in spec.submodule_search_locations if spec else ():
        for path in Path(folder).glob("lib/libscipy_openblas*.so"):
            return path
    raise RuntimeError("no libopenblas.so.0 and no scipy-openblas32; pip install scipy-openblas32")


def _load(name: str, mode: int) -> ctypes.CDLL:
    """Load an OpenBLAS with half the physical cores; it reads that number only while it loads.

    Its threads spin while they wait for each other and for work. Where something else wants a core, MLX's own
    thread included, that costs more than the second half of the cores brings: on two shared cores a training
    step took 2 to 4 times as long with two threads as with one.
    """
    if any(v in os.environ for v in THREAD_VARIABLES):
        return ctypes.CDLL(name, mode)
    os.environ[THREAD_VARIABLES[0]] = str(max(1, physical_cores() // 2))
    try:
        return ctypes.CDLL(name, mode)
    finally:
        del os.environ[THREAD_VARIABLES[0]]


def physical_cores() -> int:
    """Cores this process may use, hyperthreads counted once: two of them share one vector unit.

    A container may use fewer of them at a time than it sees.
    """
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
    path = private_folder() / f"gemm-{digest}.so"
    if not path.exists():
        _compile(path)
    try:
        return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RuntimeError(f"{error}; delete that file") from None


def private_folder() -> Path:
    """The user's cache folder, refused when somebody else could plant a library in it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "kssm-mlx"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeError(f"cannot make {folder} ({error.strerror}); set XDG_CACHE_HOME") from None
    facts = folder.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise RuntimeError(f"{folder} must be yours and writable only by you; chmod 700 it")
    return folder


def _compile(library: Path) -> None:
    compile_library(SOURCE, library, "-O2")


def compile_library(code: str, library: Path, *flags: str) -> None:
    """Compile C++ beside `library` and rename it there, so that several processes may do so at once.

    Raises:
        RuntimeError: no g++, or it refused the code.
    """
    import shutil
    import subprocess
    import tempfile

    if shutil.which("g++") is None:
        raise RuntimeError("g++ is missing; install it (apt install g++): mx.compile needs it too")
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
