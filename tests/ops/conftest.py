"""The dialects of the kernels: C++ everywhere, Metal and CUDA where there is such a device."""

from __future__ import annotations

import mlx.core as mx
import pytest

from kssm_mlx.ops import gpu


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory):
    """Where the C++ dialect keeps its libraries in this session; every kernel is compiled once."""
    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "library_folder", lambda: folder)
        yield


@pytest.fixture
def cpp(library_folder):
    """`impl="gpu"` runs the C++ dialect, and forms of MLX run uncompiled, which saves g++ seconds."""
    mx.disable_compile()
    with gpu.speaking("cpp"):
        yield
    mx.enable_compile()


@pytest.fixture(
    params=["cpp", pytest.param("metal", marks=pytest.mark.metal), pytest.param("gpu", marks=pytest.mark.gpu)]
)
def dialect(request):
    """Each dialect this machine can run, as what `impl="gpu"` means."""
    if request.param == "cpp":
        request.getfixturevalue("cpp")
    return request.param
