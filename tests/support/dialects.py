"""The dialects that tests run kernels in, each by a name of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from kssm_mlx.ops import gpu
from tests.support import metal_text
from tests.support.compiling import uncompiled

# By the device that a dialect needs: none for C++, nor for Metal's text, which runs through a stand-in.
PARAMETERS = [
    "cpp",
    pytest.param("metal-text", marks=pytest.mark.linux),
    pytest.param("metal", marks=pytest.mark.metal),
    pytest.param("gpu", marks=pytest.mark.gpu),
]


def kernels_in(name: str) -> AbstractContextManager[None]:
    """`impl="kernel"` runs the dialect of this name: one of "cpp", "metal-text", "metal" and "gpu"."""
    if name in ("cpp", "metal-text"):
        return _on_the_cpu(name)
    return gpu.use_dialect({"metal": "metal", "gpu": "cuda"}[name])


@contextmanager
def _on_the_cpu(name: str) -> Iterator[None]:
    """Forms of MLX run uncompiled, which saves g++ seconds."""
    with uncompiled(), gpu.use_dialect("cpp") if name == "cpp" else metal_text.standing_in():
        yield
