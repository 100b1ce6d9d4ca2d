"""A kernel that raises after all is off, once and with a warning, and the compiled form goes on."""

from __future__ import annotations

import warnings

import mlx.core as mx
import pytest

from kssm_mlx.errors import KssmWarning
from kssm_mlx.ops import dispatch, gpu, proof, verdicts
from kssm_mlx.ops.conv import causal_conv
from kssm_mlx.ops.proof import Verdict

pytestmark = pytest.mark.linux  # C++ kernels play those of a GPU
X, WEIGHT = mx.ones((2, 5, 3)), mx.ones((3, 4))


@pytest.fixture(autouse=True)
def trusted_kernels(monkeypatch):
    """The C++ dialect plays a GPU whose kernels have all agreed with the compiled forms."""
    monkeypatch.setattr(dispatch, "_off", {})
    monkeypatch.setattr(dispatch, "_verdict", lambda op, *_: Verdict(op, True, 0.0))
    with gpu.use_dialect("cpp"):
        yield


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Of the kernel of the convolution, which raises each time."""
    found = []

    def conv(*_, **__):
        found.append("conv")
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(dispatch.module("conv"), "conv", conv)
    return found


def test_the_compiled_form_goes_on(calls):
    expected = causal_conv(X, WEIGHT, impl="compiled")[0]
    with pytest.warns(KssmWarning, match=r"conv: the kernel is off \(RuntimeError: the device is lost\)"):
        assert mx.array_equal(causal_conv(X, WEIGHT)[0], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mx.array_equal(causal_conv(X, WEIGHT)[0], expected)
    assert calls == ["conv"]
    assert not dispatch.is_trusted("conv", W=4)
    assert dispatch.is_trusted("wkv4")


def test_gradients_are_those_of_the_compiled_form(calls):
    with pytest.warns(KssmWarning, match="conv: the kernel is off"):
        found = mx.grad(lambda x: causal_conv(x, WEIGHT)[0].sum())(X)
    assert mx.array_equal(found, mx.grad(lambda x: causal_conv(x, WEIGHT, impl="compiled")[0].sum())(X))


def test_another_device_is_another_kernel(calls):
    with pytest.warns(KssmWarning, match="conv: the kernel is off"):
        causal_conv(X, WEIGHT)
    with gpu.use_dialect("metal"):
        assert dispatch.is_trusted("conv", W=4)


def test_wrong_arguments_are_not_the_kernels_fault(calls):
    """The compiled form refuses them as well."""
    with pytest.raises(ValueError, match="broadcast"):
        causal_conv(X, mx.ones((7, 4)))
    assert dispatch.is_trusted("conv", W=4)


def test_an_array_that_is_too_long_is_not_the_kernels_fault(monkeypatch):
    def conv(*_):
        raise gpu.TooLong("conv: too many elements")

    monkeypatch.setattr(dispatch.module("conv"), "conv", conv)
    assert mx.array_equal(causal_conv(X, WEIGHT)[0], causal_conv(X, WEIGHT, impl="compiled")[0])
    assert dispatch.is_trusted("conv", W=4)


def test_who_asks_for_the_kernel_is_told(calls):
    with pytest.raises(RuntimeError, match="the device is lost"):
        causal_conv(X, WEIGHT, impl="kernel")
    assert dispatch.is_trusted("conv", W=4)


@pytest.mark.parametrize(
    "op", [op for op in dispatch.OPS if op not in (*dispatch.COMPILED_BY_DEFAULT, "elementary")]
)
def test_every_op_falls_back(op, monkeypatch, uncompiled):
    case = dispatch.case(op)
    arrays = case.inputs(2, 5, 3, mx.float32)

    def raising(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr(dispatch.module(op), op, raising)
    monkeypatch.setattr(dispatch, "_warn_if_off", lambda verdict: verdict)
    ours, theirs = (case.call(case.form(form), list(arrays), {}) for form in ("auto", "compiled"))
    assert all(mx.array_equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert (op, "cpp") in dispatch._off


def test_a_variant_has_a_verdict_of_its_own(monkeypatch):
    """A head size that nobody proved is proved before it is used."""
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(
        proof, "prove", lambda op, case, **v: asked.append(v) or Verdict(op, v["K"] != 48, 0.0)
    )
    monkeypatch.setattr(dispatch, "PROVEN", ())
    monkeypatch.setattr(verdicts, "read_verdicts", dict)
    dispatch.forget()
    with pytest.warns(KssmWarning, match="wkv7: the kernel is off"):
        assert [dispatch.is_trusted("wkv7", K=K) for K in (64, 48, 64)] == [True, False, True]
    assert asked == [{"K": 64}, {"K": 48}]
    dispatch.forget()


@pytest.mark.parametrize("version", ["15.7", "26.2"])
def test_a_verdict_is_of_one_system(version, monkeypatch):
    """Metal's compiler comes with macOS."""
    monkeypatch.setattr(verdicts.platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    verdicts._system.cache_clear()
    assert f"macOS {version}" in verdicts.identity("conv", W=4)
    assert "W=4" in verdicts.identity("conv", W=4)
    verdicts._system.cache_clear()


@pytest.mark.linux
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_text_that_metal_does_not_compile_is_met_when_the_kernel_is_called(compiled, monkeypatch):
    """And not when values are wanted, far from any form that could go on; also while MLX traces."""

    def metal_kernel(**_):
        def call(*, inputs, output_shapes, init_value=None, **_):
            built.append(init_value)
            raise RuntimeError("[metal::Device] Unable to build metal library from source")

        return call

    built: list[float | None] = []
    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
    gpu._gpu_kernel.cache_clear()
    with gpu.use_dialect("metal"):
        function = lambda x: causal_conv(x, WEIGHT)[0]  # noqa: E731
        with pytest.warns(
            UserWarning, match="conv_forward cannot be built here .*Unable to build metal library"
        ):
            found = (mx.compile(function) if compiled else function)(X)
        assert mx.allclose(found, causal_conv(X, WEIGHT, impl="compiled")[0])
    gpu._gpu_kernel.cache_clear()
    assert built == [0.0]  # no launch that counts was tried


@pytest.fixture
def no_backward(monkeypatch) -> list[str]:
    """The kernel of the convolution's backward pass raises each time it is called."""
    called, run = [], gpu.cpp.run

    def raising(kernel, *args):
        if kernel.name == "conv_backward":
            called.append(kernel.name)
            raise RuntimeError("the device is lost")
        return run(kernel, *args)

    monkeypatch.setattr(gpu.cpp, "run", raising)
    return called


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_step_whose_backward_pass_raises_is_taken_again_without_the_kernel(no_backward, compiled):
    def gradient(impl, x):
        return mx.grad(lambda x: causal_conv(x, WEIGHT, impl=impl)[0].sum())(x)

    expected = gradient("compiled", X)
    wrapped = (lambda f: mx.compile(f)) if compiled else (lambda f: f)
    step = dispatch.with_second_try(lambda: wrapped(lambda x: gradient("auto", x)))
    with pytest.warns(KssmWarning, match=r"conv: the kernel is off \(RuntimeError: the device is lost\)"):
        assert mx.array_equal(step(X), expected)
    assert mx.array_equal(step(X), expected)
    assert no_backward == ["conv_backward"] and not dispatch.is_trusted("conv", W=4)


def test_an_error_of_no_kernel_is_raised_as_it_is():
    def fail(x):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        dispatch.with_second_try(lambda: fail)(X)


def test_a_training_step_goes_on_when_a_backward_kernel_raises(no_backward):
    from kssm_mlx.models import build, configure
    from kssm_mlx.training.recipe_sections import Train
    from kssm_mlx.training.state import initial_state
    from kssm_mlx.training.step import make_step

    train = Train(steps=4, batch_size=2, context=8, warmup=1)
    model = build(configure("kssm", "xs", vocab_size=11), seed=0)
    step, state = make_step(model, train, compile=False), initial_state(model, train)
    tokens = mx.random.randint(0, 11, (2, 9), key=mx.random.key(0)).astype(mx.int32)
    with pytest.warns(KssmWarning, match="conv: the kernel is off"):
        state, metrics = step(state, tokens)
    assert mx.isfinite(metrics["loss"]).item() and no_backward == ["conv_backward"]
