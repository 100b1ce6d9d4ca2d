"""What every test relies on: full float32, a compiler that compiles, one JIT cache per worker."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before the first import of mlx. Two workers with a thread per core each would fight over the cores.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Other people's progress bars and advice.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"

import kssm_mlx  # noqa: F401  a test file may import mlx first, and then the slow BLAS would win
from kssm_mlx.reports import style
from tests.support import compiler, compiling

PLUGINS = (
    *("repeatable", "quiet", "slowest", "mac", "one_of_each", "longest_first"),
    *("settled_heap", "commands"),
)
pytest_plugins = [f"tests.support.{name}" for name in PLUGINS]

# No limits of wall-clock time, and the same examples for everybody.
settings.register_profile(
    "kssm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kssm")

SHARED_TEXT = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"


def pytest_configure(config):
    # Here and not in pyproject.toml, where the category would be imported before the lines above.
    config.addinivalue_line("filterwarnings", "error::kssm_mlx.errors.KssmWarning")
    # Verdicts on weights are remembered in the home of whoever uses them, not of whoever tests them.
    os.environ["KSSM_CACHE"] = config.kssm_cache = tempfile.mkdtemp(prefix="kssm-mlx-cache-")
    if sys.platform == "linux" and shutil.which("g++") is None:
        raise pytest.UsageError("g++ is missing: without it mx.compile runs uncompiled and hides its bugs")
    if not hasattr(config, "workerinput"):
        config.compiled = tempfile.mkdtemp(prefix="kssm-mlx-compiled-")
        cache = getattr(config, "cache", None)  # none with -p no:cacheprovider
        compiler.install(config.compiled, cache and str(cache.mkdir("compiled")))
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # `make test &` in a script starts with SIGINT ignored, and so would the runs that tests interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("COLUMNS", None)  # xdist tells its workers how wide the terminal is; tables would follow
    if hasattr(config, "workerinput"):
        # mlx writes its JIT cache under TMPDIR, and not atomically.
        config.worker_tmp = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="kssm-mlx-tests-")
        tempfile.tempdir = None


def pytest_unconfigure(config):
    shutil.rmtree(config.kssm_cache, ignore_errors=True)
    if hasattr(config, "compiled"):
        shutil.rmtree(config.compiled, ignore_errors=True)
    if hasattr(config, "worker_tmp"):
        shutil.rmtree(config.worker_tmp, ignore_errors=True)


def pytest_collection_modifyitems(items):
    import mlx.core as mx

    available = {
        "metal": mx.metal.is_available(),
        "gpu": mx.cuda.is_available(),
        "linux": sys.platform == "linux",
    }
    for item in items:
        for name, here in available.items():
            if item.get_closest_marker(name) and not here:
                item.add_marker(pytest.mark.skip(reason=f"no {name} on this machine"))


@pytest.fixture(scope="session", autouse=True)
def coarse_pictures():
    """Most tests ask whether there is a picture; the dots of one take as long as the rest of a report."""
    style.RC["savefig.dpi"], fine = 30, style.RC["savefig.dpi"]
    return fine


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """No test pulls the plug, which is all that waiting for the disk is for: by hand, 2.5 ms each, a hundred
    times for a recipe in its smoke form. A descriptor that is not open is an error all the same. Processes
    that tests start do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture
def fine_pictures(coarse_pictures, monkeypatch):
    """Pictures as users get them."""
    monkeypatch.setitem(style.RC, "savefig.dpi", coarse_pictures)


@pytest.fixture
def uncompiled():
    """For tests of what is computed, not of how: on a cold cache g++ takes longer than they do."""
    with compiling.uncompiled():
        yield


@pytest.fixture(scope="session")
def shared_text() -> Path:
    """TinyShakespeare, where the project's shared folder lies beside the clone."""
    if not SHARED_TEXT.exists():
        pytest.skip(
            "TinyShakespeare is not part of the repository; "
            f"with {SHARED_TEXT.name} in ../shared/data, beside the clone, this test runs"
        )
    return SHARED_TEXT


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def repeatable_peak(monkeypatch):
    """MLX allocates ahead of what it computes, by more where the machine is busy. Beyond its limit of memory
    it is ahead by ten operations at most, and a peak that many make is nearly the same each time; whoever
    asks sees the usual limit.
    """
    import mlx.core as mx

    before = mx.set_memory_limit(1)
    monkeypatch.setattr(mx, "get_memory_limit", lambda: before)
    yield
    mx.set_memory_limit(before)
