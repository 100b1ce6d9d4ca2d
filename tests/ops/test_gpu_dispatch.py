"""The rule behind `impl`: who decides, what is remembered, and that a wrong kernel is switched off."""

from __future__ import annotations

import warnings

import mlx.core as mx
import pytest

from kssm_mlx.errors import ConfigError, KssmWarning
from kssm_mlx.ops import dispatch, gpu, proof, verdicts
from kssm_mlx.ops.dialects import native
from kssm_mlx.ops.proof import Verdict
from kssm_mlx.ops.selective_scan import selective_scan


@pytest.fixture
def record(tmp_path, monkeypatch, library_folder):
    """An empty record of verdicts; the C++ dialect plays the GPU."""
    monkeypatch.setattr(verdicts, "_record", lambda: tmp_path / "kernels.json")
    monkeypatch.setattr(dispatch, "PROVEN", ())
    dispatch.forget()
    with gpu.use_dialect("cpp"):
        yield tmp_path / "kernels.json"
    dispatch.forget()


def test_auto_is_compiled_without_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "dialect", lambda: None)
    assert dispatch.kernel("conv", "auto") is None
    assert dispatch.kernel("conv", "compiled") is None


def test_gpu_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(gpu, "dialect", lambda: None)
    args = dispatch.case("selective_scan").arguments(1, 2, 3)
    with pytest.raises(ConfigError, match=r"selective_scan: impl='kernel' cannot run on .* use 'auto'"):
        selective_scan(args[0], args[1], args[4], args[2], args[3], impl="kernel")


def test_an_unknown_impl_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="got 'compile'; did you mean 'compiled'"):
        dispatch.kernel("conv", "compile")


def test_what_a_cpu_speaks_is_what_can_be_built_here(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr(gpu, "_spoken", [])
    assert gpu.dialect() == (None if native.why_not() else "cpp")
    monkeypatch.setattr(native, "why_not", lambda: "no g++")
    assert gpu.dialect() is None


def test_float64_is_left_to_the_compiled_form(record):
    x = mx.zeros((1, 2, 3), mx.float64, stream=mx.cpu)
    assert dispatch.kernel("conv", "auto", x) is None
    with pytest.raises(ConfigError, match=r"conv: kernels compute in float32, got float64"):
        dispatch.kernel("conv", "kernel", x)


def test_auto_uses_a_kernel_that_proves_itself(record, called):
    case = dispatch.case("conv")
    assert dispatch.kernel("conv", "auto", W=4)
    case.call(case.form("auto"), case.inputs(1, 2, 2, mx.float32), {})
    assert called[-1] == "conv_forward"
    assert not record.exists()  # only kssm doctor writes


@pytest.mark.parametrize("op", ["conv", "mobius_scan"])
def test_auto_inside_a_compiled_gradient(op, record):
    """The proof runs while MLX is tracing; it may not disturb that."""
    asked = mx.compile(mx.grad(lambda x: x * (2 if dispatch.kernel(op, "auto") else 3)))
    assert asked(mx.array(1.0)).item() == 2


@pytest.mark.parametrize("op", [op for op in dispatch.OPS if op not in dispatch.FOR_CPUS])
def test_kernels_are_lazy(op, monkeypatch):
    """On a GPU a compiled training step holds them: nothing may be evaluated while it is traced."""
    made = lambda **_: lambda **call: [mx.zeros(shape) for shape in call["output_shapes"]]  # noqa: E731
    monkeypatch.setattr(mx.fast, "metal_kernel", made)
    case, masks = dispatch.case(op), proof.documents(3, 37)
    arrays = case.arguments(3, 37, 6)
    gpu._gpu_kernel.cache_clear()
    with gpu.use_dialect("metal"):
        gradients = mx.compile(lambda *x: proof.outcome(case, "kernel", list(x), masks)[-len(x) :])(*arrays)
    gpu._gpu_kernel.cache_clear()
    assert [g.shape for g in gradients] == [x.shape for x in arrays]


def test_matmuls_stay_compiled_until_asked(record):
    assert dispatch.kernel("ssd", "auto") is None
    assert dispatch.kernel("ssd", "kernel") is not None


@pytest.mark.parametrize("value, why", [("7", "differs"), ("undefined", "failed")])
def test_a_wrong_kernel_is_switched_off(record, monkeypatch, value, why):
    """Wrong numbers and code that does not compile: the compiled form runs, and a warning says why."""
    body = property(lambda kernel: f"{kernel.outputs.split()[0]}[lane] = {value};")
    monkeypatch.setattr(gpu.Kernel, "body", body)
    with pytest.warns(KssmWarning, match=rf"conv: the kernel is off .*{why}"):
        assert dispatch.kernel("conv", "auto") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.kernel("conv", "auto") is None  # said once


def test_a_recorded_verdict_stands(record, monkeypatch):
    monkeypatch.setattr(proof, "prove", lambda *_: pytest.fail("there is a verdict already"))
    wrong, right = Verdict("conv", False, 0.5, "wrong on this device"), Verdict("wkv4", True, 1e-7)
    dispatch.record({verdicts.identity(v.op): v for v in (wrong, right)})
    assert not dispatch.is_trusted("conv")
    assert dispatch.is_trusted("wkv4")


def test_a_verdict_does_not_outlive_the_device(record, monkeypatch):
    dispatch.record({verdicts.identity("conv"): Verdict("conv", False, 0.5, "wrong")})
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "another one"})
    assert dispatch.is_trusted("conv")


@pytest.mark.parametrize("text", ["", "[]", '{"x": 3}', '{"x": {"op": "conv"}}'])
def test_a_broken_record_is_as_good_as_none(record, text):
    record.write_text(text)
    assert verdicts.read_verdicts() == {}
    dispatch.record({"here": Verdict("conv", True, 0.0)})
    assert verdicts.read_verdicts() == {"here": Verdict("conv", True, 0.0)}


@pytest.mark.parametrize("op", dispatch.FOR_CPUS)
def test_a_kernel_for_cpus_is_not_run_on_a_gpu(op):
    with gpu.use_dialect("metal"):
        assert dispatch.kernel(op, "auto") is None
        with pytest.raises(ConfigError, match=rf"{op}: impl='kernel' cannot run on .*; use 'auto'"):
            dispatch.kernel(op, "kernel")
