"""The dialects of the kernels: C++ and Metal's text on Linux, Metal and CUDA where there is such a device."""

from __future__ import annotations

import pytest

from kssm_mlx.ops import dispatch, gpu
from kssm_mlx.ops.dialects import cpp as cpp_dialect
from tests.support.dialects import PARAMETERS, kernels_in


@pytest.fixture(autouse=True)
def compiled_forms():
    """What is tested is the compiled form, unless a test asks for a dialect."""
    with gpu.use_dialect(None):
        yield


@pytest.fixture
def library_folder(tmp_path, monkeypatch):
    """Libraries of damaged kernels go here and not among the user's."""
    monkeypatch.setattr(cpp_dialect, "library_folder", lambda: tmp_path)


@pytest.fixture
def cpp():
    """`impl="kernel"` runs the C++ dialect."""
    with kernels_in("cpp"):
        yield


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """Names of the kernels that run, in the order of their calls."""
    names, call = [], gpu.Kernel.__call__

    def counted(kernel, *args, **options):
        names.append(kernel.name)
        return call(kernel, *args, **options)

    monkeypatch.setattr(gpu.Kernel, "__call__", counted)
    return names


@pytest.fixture(params=[None, "cpp"], ids=["compiled", "kernel"])
def form(request, called):
    """Without kernels and with them; a test that meant to run one and did not, fails."""
    with gpu.use_dialect(request.param):
        if request.param:
            assert all(map(dispatch.is_trusted, ("elementary", "norms", "token_mix")))
            called.clear()  # the proofs of first uses
        yield
    assert bool(called) == (request.param == "cpp")


@pytest.fixture(params=PARAMETERS)
def dialect(request):
    """Each dialect this machine can run, as what `impl="kernel"` means."""
    op = getattr(request.node, "callspec", None) and request.node.callspec.params.get("op")
    if request.param != "cpp" and op in dispatch.FOR_CPUS:
        pytest.skip(f"{op} has a kernel for CPUs alone; on a GPU MLX's own functions run in its place")
    with kernels_in(request.param):
        yield request.param
