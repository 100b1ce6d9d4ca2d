"""What `--pretend-mac` takes away and refuses, and that it is all given back."""

import os
import platform
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from kssm_mlx import environment, files
from kssm_mlx.ops import gpu
from tests.support import mac

pytestmark = pytest.mark.linux


@pytest.fixture
def pretended():
    with mac.pretending():
        yield


def test_the_system_is_macos(pretended, tmp_path):
    assert sys.platform == "darwin" and platform.mac_ver()[0] and platform.machine() == "arm64"
    assert not hasattr(os, "sched_getaffinity") and not Path("/proc/cpuinfo").exists()
    with pytest.raises(FileNotFoundError):
        Path("/proc/self/stat").read_text()
    files.replace(tmp_path / "a", "x")  # by way of F_FULLFSYNC
    assert (tmp_path / "a").read_text() == "x"


def test_the_device_is_a_gpu_that_speaks_metal(pretended):
    assert gpu.dialect() == "metal" and mx.default_device() == mx.gpu
    facts = environment.device()
    assert facts["type"] == "gpu" and facts["memory_size"] == 36 * mac.GIB
    with mx.stream(mx.cpu):
        assert mx.default_device() == mx.cpu and gpu.dialect() is None


@pytest.mark.parametrize(
    "refused",
    [
        lambda: mx.zeros(3, mx.float64),
        lambda: mx.array([1.0]).astype(mx.float64),
        lambda: mx.linalg.qr(mx.eye(2)),
        lambda: mx.linalg.eigh(mx.eye(2), stream=mx.gpu),
    ],
)
def test_doubles_and_lapack_are_for_the_cpu(pretended, refused):
    with pytest.raises(ValueError, match="GPU"):
        refused()


def test_on_the_cpu_they_are_there(pretended):
    with mx.stream(mx.cpu):
        assert mx.ones(2).astype(mx.float64).sum().item() == 2
    assert mx.linalg.qr(mx.eye(2), stream=mx.cpu)[0].shape == (2, 2)


def test_afterwards_it_is_linux_again():
    with mac.pretending():
        pass
    assert sys.platform == "linux" and platform.system() == "Linux" and hasattr(os, "sched_getaffinity")
    assert mx.zeros(1).astype(mx.float64).dtype == mx.float64 and gpu.dialect() != "metal"
