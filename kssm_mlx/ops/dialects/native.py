"""The bridge by which the C++ dialect runs as part of MLX's graph on a Linux CPU.

MLX can be given new operations by a compiled module that shares its Python types. Ours is one small file
(`kernels/bridge.cpp`), compiled once with the g++ that `mx.compile` needs anyway and kept in the user's cache
folder. Without it - no g++, another nanobind than MLX was built with - `why_not()` says why, and the compiled
forms run as they do everywhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import mlx.core as mx

from kssm_mlx import _blas
from kssm_mlx._caches import is_private, is_whole, private_folder

BRIDGE = Path(__file__).parents[1] / "kernels" / "bridge.cpp"


def why_not() -> str:
    """Why the bridge cannot be used here; empty where it can."""
    return _bridge()[1]


def run(function: int, lanes: int, together: int, inputs: list[mx.array], outputs: list) -> list[mx.array]:
    """A node that calls the function at this address for all lanes; `together` of them stay on one thread.

    Shapes: inputs any, made contiguous here; outputs, a list of shapes, fp32.
    """
    shapes = [list(map(int, shape)) for shape in outputs]
    ready = [mx.contiguous(x) for x in inputs]
    module, why = _bridge()
    if module is None:
        raise RuntimeError(why)
    return module.run(function, lanes, together, _threads(), ready, shapes)


_threads = cache(_blas.threads)


@cache
def _bridge() -> tuple[ModuleType | None, str]:
    """(module, "") or (None, why not). Never raises: the compiled forms are always there."""
    if sys.platform != "linux":
        return None, "the bridge is for Linux; this machine has its own GPU kernels or the compiled forms"
    try:
        module = _load(_library())
        _prove(module)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return module, ""


def _library() -> Path:
    """The compiled bridge, from the cache or fresh; one for every version of what it is made of."""
    from importlib.metadata import version

    source = (_blas.NATIVE / "team.h").read_text() + BRIDGE.read_text()
    parts = (source, version("mlx"), version("nanobind"), sys.version, os.uname().machine)
    name = f"kssm_bridge_{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
    path = private_folder() / f"{name}.so"
    if path.exists() and not (is_private(path) and is_whole(path)):
        path.unlink()
    if not path.exists():
        _blas.compile_library(f"#define MODULE {name}\n{source}", path, *_flags())
    return path


def _flags() -> list[str]:
    """What g++ needs to find MLX, nanobind and Python, and to share MLX's types ("domain")."""
    mlx, nanobind = (_folder(name) for name in ("mlx.core", "nanobind"))
    folders = [
        mlx / "include",
        nanobind / "include",
        nanobind / "ext" / "robin_map" / "include",
        sysconfig.get_path("include"),
    ]
    return [
        "-std=c++20",
        "-O2",
        "-fvisibility=hidden",
        "-DNB_DOMAIN=mlx",
        *(f"-I{folder}" for folder in folders),
        str(nanobind / "src" / "nb_combined.cpp"),
        f"-L{mlx / 'lib'}",
        "-lmlx",
        f"-Wl,-rpath,{mlx / 'lib'}",
    ]


def _folder(name: str) -> Path:
    """Where a package lies. Raises: ImportError where there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"no package {name}")
    return Path(spec.origin).parent


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module of Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _prove(module: ModuleType) -> None:
    """A call without lanes: raises unless the module takes MLX's arrays and gives them back."""
    (y,) = module.run(0, 0, 1, 1, [mx.zeros(1)], [[2, 3]])
    if type(y) is not mx.array or y.shape != (2, 3):
        raise TypeError(f"a call gave {type(y).__name__}, not an mlx array")
