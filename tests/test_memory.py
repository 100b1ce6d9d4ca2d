"""What glibc is asked to keep: asked once, not against the user's own choice, and never raising."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from kssm_mlx import _memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="MLX caches its memory on a Mac")

GROWTH = """
import resource
{before}
import mlx.core as mx
x = mx.zeros(16 << 20)
mx.eval(x)
for _ in range(3):
    mx.eval(x + 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    mx.eval(x + 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture
def free(monkeypatch):
    for name in _memory.SWITCHES:
        monkeypatch.delenv(name, raising=False)


def faults(before: str) -> int:
    """Pages that ten sums of 64 MB had to be given by the system, of some 160,000 that they write."""
    run = subprocess.run(
        [sys.executable, "-c", GROWTH.format(before=before)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    return int(run.stdout)


def test_freed_memory_is_used_again(free):
    assert faults("import kssm_mlx") < 16_000 < faults("")


def test_who_has_chosen_is_left_alone(free, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked all the same"))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not _memory.keep_freed_memory()


def test_another_c_library_is_left_alone(free, monkeypatch):
    def missing(name):
        raise OSError("no such library")

    monkeypatch.setattr(_memory.ctypes, "CDLL", missing)
    assert not _memory.keep_freed_memory()
