"""`pytest --pretend-mac`: the suite on a machine that says it is a Mac with a GPU.

Python sees darwin on arm64, no /proc and none of the functions that macOS lacks; MLX a default device that is
a GPU speaking Metal, on which float64 and LAPACK are refused in MLX's words; kernels are Metal's texts,
checked and run by a stand-in (metal_text.py). Arithmetic stays that of the CPU, so this finds code that takes
another way on a Mac, not numbers that differ there.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import importlib.util
import io
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import mlx.core as mx
import pytest
from clang import cindex

from kssm_mlx import _blas
from kssm_mlx.ops import proof
from kssm_mlx.ops.dialects import native
from tests.support import metal_run, metal_text

GIB = 1 << 30
FACTS = {
    "device_name": "Apple M4 Max (pretended)",
    "architecture": "applegpu_g16s",
    "memory_size": 36 * GIB,
    "max_recommended_working_set_size": 27 * GIB,
    "max_buffer_length": 20 * GIB,
    "resource_limit": 499_000,
}
SYSTEM = {
    "system": "Darwin",
    "machine": "arm64",
    "processor": "arm",
    "release": "24.6.0",
    "mac_ver": ("15.6", ("", "", ""), "arm64"),
    "platform": "macOS-15.6-arm64-arm-64bit",
}
ABSENT = ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "memfd_create")
NO_FOLDERS = ("/proc", "/sys", "/etc/machine-id")
F_FULLFSYNC = 51
LAPACK = (
    *("qr", "svd", "inv", "tri_inv", "cholesky", "cholesky_inv", "pinv", "lu", "lu_factor"),
    *("eig", "eigh", "eigvals", "eigvalsh", "solve", "solve_triangular"),
)
MAKERS = ("zeros", "ones", "full", "arange", "linspace", "eye")
# Packages of others that load Apple's libraries when they are imported on darwin.
FOREIGN = ("truststore",)
# Verdicts on the pretended device; the user's own are not written to.
CACHE = Path(__file__).parents[2] / "build" / "pretended-mac"


def pytest_addoption(parser):
    parser.addoption("--pretend-mac", action="store_true", help="run as if on a Mac, with stand-in kernels")


def pytest_configure(config):
    hands_out = not hasattr(config, "workerinput") and config.getoption("numprocesses", None)
    if config.getoption("--pretend-mac") and not hands_out:
        stack = ExitStack()
        stack.enter_context(pretending())
        config.add_cleanup(stack.close)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    if item.config.getoption("--pretend-mac"):
        assert not (found := metal_run.take_faults()), found


@contextmanager
def pretending() -> Iterator[None]:
    """Everything at once. What the stand-ins need of Linux is loaded before."""
    assert native.why_not() == "" and native._threads() and cindex.conf.lib
    bridge = native._bridge()
    for name in filter(importlib.util.find_spec, FOREIGN):
        importlib.import_module(name)
    CACHE.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(CACHE)}),
        _macos(),
        _gpu(),
        mock.patch.object(mx.fast, "metal_kernel", metal_text.metal_kernel),
        mock.patch.object(proof, "TIMED", metal_text.TIMED),
        mock.patch.object(native, "_bridge", cache(lambda: bridge)),
    ):
        yield


# --- the system -------------------------------------------------------------------------------------------


@contextmanager
def _macos() -> Iterator[None]:
    proxies = SimpleNamespace(_get_proxy_settings=dict, _get_proxies=dict)  # urllib asks macOS for them
    with ExitStack() as stack:
        put = stack.enter_context
        for name, value in SYSTEM.items():
            put(mock.patch.object(platform, name, lambda *_, value=value, **__: value))
        for name in ABSENT:
            put(mock.patch.object(os, name))
            delattr(os, name)
        for module, name in ((io, "open"), (builtins, "open"), (os, "stat"), (os, "open"), (os, "listdir")):
            put(mock.patch.object(module, name, _without(getattr(module, name))))
        put(mock.patch.object(subprocess.Popen, "__init__", _alone(subprocess.Popen.__init__)))
        put(mock.patch.dict(sys.modules, _scproxy=proxies))
        put(mock.patch.object(fcntl, "F_FULLFSYNC", F_FULLFSYNC, create=True))
        put(mock.patch.object(fcntl, "fcntl", _full_sync(fcntl.fcntl)))
        put(mock.patch.object(_blas, "_status", _blas.Blas("Accelerate", "part of macOS", "", True)))
        put(mock.patch.object(native, "why_not", return_value="the bridge is for Linux"))
        put(mock.patch.object(sys, "platform", "darwin"))
        yield


def _without(function: Callable) -> Callable:
    """The same, blind to folders that only Linux has."""

    @wraps(function)
    def looked(path, *args, **options):
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(NO_FOLDERS):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        return function(path, *args, **options)

    return looked


def _alone(function: Callable) -> Callable:
    """`Popen.__init__` that skips a test of our processes: they would not pretend."""

    @wraps(function)
    def begin(self, args, *rest, **options):
        if sys.executable in args and "PYTEST_CURRENT_TEST" in os.environ:
            pytest.skip(
                "starts another Python, which would not pretend to be a Mac; without --pretend-mac it runs"
            )
        return function(self, args, *rest, **options)

    return begin


def _full_sync(function: Callable) -> Callable:
    @wraps(function)
    def control(fd, command, *args):
        return os.fsync(fd) if command == F_FULLFSYNC else function(fd, command, *args)

    return control


# --- the device -------------------------------------------------------------------------------------------

_devices: list[Any] = [mx.Device(mx.gpu, 0)]
_gpu_streams: list[Any] = []


def _device(where: Any) -> Any:
    """Of a device, its type, or a stream."""
    if any(where is stream for stream in _gpu_streams):
        return mx.Device(mx.gpu, 0)
    where = getattr(where, "device", where)
    return mx.Device(where, 0) if isinstance(where, mx.DeviceType) else where


def _on_gpu(stream: Any = None) -> bool:
    """Where an operation would run: on `stream`, or else on the default device."""
    return (_devices[-1] if stream is None else _device(stream)) == mx.gpu


@contextmanager
def _gpu() -> Iterator[None]:
    with ExitStack() as stack:
        put = stack.enter_context
        put(mock.patch.object(mx, "default_device", _default_device))
        put(mock.patch.object(mx, "set_default_device", _take))
        put(mock.patch.object(mx, "stream", _stream(mx.stream)))
        for name in ("new_stream", "new_thread_local_stream", "new_thread_unsafe_stream"):
            put(mock.patch.object(mx, name, _new_stream(getattr(mx, name))))
        put(mock.patch.object(mx, "device_info", return_value=FACTS))
        put(mock.patch.object(mx.metal, "is_available", return_value=True))
        put(mock.patch.object(mx.metal, "device_info", return_value=FACTS, create=True))
        for name in LAPACK:
            put(mock.patch.object(mx.linalg, name, _lapack(name, getattr(mx.linalg, name))))
        for name in MAKERS:
            put(mock.patch.object(mx, name, _single(getattr(mx, name))))
        astype = mx.array.astype
        mx.array.astype = _single(astype)
        stack.callback(setattr, mx.array, "astype", astype)
        yield


def _default_device() -> Any:
    return _devices[-1]


def _take(device: Any) -> None:
    _devices[-1] = _device(device)


def _stream(function: Callable) -> Callable:
    """`mx.stream` that remembers where it is, and stays on the CPU when it is to be on the GPU."""

    @contextmanager
    def stream(where: Any) -> Iterator[Any]:
        _devices.append(_device(where))
        try:
            with function(mx.cpu if where in (mx.gpu, mx.Device(mx.gpu, 0)) else where) as entered:
                yield entered
        finally:
            _devices.pop()

    return stream


def _new_stream(function: Callable) -> Callable:
    """A stream of the CPU that passes for one of the GPU."""

    @wraps(function)
    def new_stream(device: Any) -> Any:
        made = function(mx.cpu)
        if _device(device) == mx.gpu:
            _gpu_streams.append(made)
        return made

    return new_stream


def _lapack(name: str, function: Callable) -> Callable:
    @wraps(function)
    def refused(*args, stream=None, **options):
        if _on_gpu(stream):
            where = "on the GPU. Explicitly pass a CPU stream to run it."
            raise ValueError(f"[linalg::{name}] This op is not yet supported {where}")
        return function(*args, stream=mx.cpu, **options)

    return refused


def _single(function: Callable) -> Callable:
    """The same, refusing to make doubles on the GPU."""

    @wraps(function)
    def made(*args, stream=None, **options):
        asked = [a for a in (*args, options.get("dtype")) if isinstance(a, mx.Dtype)]
        if mx.float64 in asked and _on_gpu(stream):
            raise ValueError("float64 is not supported on the GPU")
        kept = {} if stream is None or _on_gpu(stream) else {"stream": stream}
        return function(*args, **kept, **options)

    return made
