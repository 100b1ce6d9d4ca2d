"""The kernels against numpy in float64: values, derivatives, edges, and where they are not used."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.ops import dispatch, gpu
from kssm_mlx.ops.elementary import exp, logsumexp, relu2, sigmoid, silu, sincos, softplus, tanh, tanh_by_x
from kssm_mlx.ops.kernels import elementary as kernels

FUNCTIONS = {
    "exp": exp,
    "sigmoid": sigmoid,
    "silu": silu,
    "softplus": softplus,
    "relu2": relu2,
    "tanh": tanh,
    "tanh_by_x": tanh_by_x,
}


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _tanh_by_x(s):
    x = np.sqrt(np.maximum(s, 1e-30))
    return np.tanh(x) / x


TRUTH = {
    "exp": np.exp,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "tanh": np.tanh,
    "tanh_by_x": _tanh_by_x,
}
SLOPE = {
    "exp": np.exp,
    "sigmoid": lambda x: _sigmoid(x) * _sigmoid(-x),
    "silu": lambda x: _sigmoid(x) * (1 + x * _sigmoid(-x)),
    "softplus": _sigmoid,
    "relu2": lambda x: 2 * np.maximum(x, 0),
    "tanh": lambda x: 1 - np.tanh(x) ** 2,
    "tanh_by_x": lambda s: _slope_of_tanh_by_x(np.sqrt(np.maximum(s, 1e-30))),
}


def _slope_of_tanh_by_x(x):
    """d/ds tanh(x)/x, s = x^2; by its series where the quotient cancels."""
    series = -1 / 3 + 4 / 15 * x**2 - 51 / 315 * x**4 + 248 / 2835 * x**6
    far = np.maximum(x, 0.03)
    return np.where(
        x < 0.03, series, (far / np.cosh(np.minimum(far, 300)) ** 2 - np.tanh(far)) / (2 * far**3)
    )


def domain(name: str) -> np.ndarray:
    """Dense over the range, in float32."""
    if name == "tanh_by_x":
        return np.concatenate([[0], np.geomspace(1e-12, 1e6, 20001)]).astype(np.float32)
    around_zero = np.geomspace(1e-10, 1, 2001)
    return np.concatenate([np.linspace(-86, 86, 40001), around_zero, -around_zero]).astype(np.float32)


@pytest.fixture
def kernel(cpp, called):
    """The functions run as kernels; `compiled_forms` of conftest has switched them off otherwise."""
    assert dispatch.is_trusted("elementary")
    called.clear()  # the proof of the first use
    yield
    assert called


@pytest.mark.parametrize("name", FUNCTIONS)
def test_relative_error_below_1e_6_over_the_range(name, kernel):
    x = domain(name)
    got, expected = np.array(FUNCTIONS[name](mx.array(x)), np.float64), TRUTH[name](x.astype(np.float64))
    assert np.abs(got / np.where(expected == 0, 1, expected) - (expected != 0)).max() < 1e-6


@pytest.mark.parametrize("bound", [10, 1e4])
def test_sincos_absolute_error(bound, kernel):
    x = np.linspace(-bound, bound, 100001).astype(np.float32)
    wide = x.astype(np.float64)
    for got, expected in zip(sincos(mx.array(x)), (np.sin(wide), np.cos(wide))):
        assert np.abs(np.array(got, np.float64) - expected).max() < 5e-7


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivative(name, kernel):
    x = domain(name)
    got = np.array(mx.grad(lambda v: FUNCTIONS[name](v).sum())(mx.array(x)), np.float64)
    expected = SLOPE[name](x.astype(np.float64))
    np.testing.assert_allclose(got, expected, rtol=5e-6, atol=5e-7 * np.minimum(1, np.abs(expected).max()))


def test_derivative_of_sincos(kernel):
    x = np.linspace(-9, 9, 1001).astype(np.float32)
    got = mx.grad(lambda v: (2 * sincos(v)[0] + 3 * sincos(v)[1]).sum())(mx.array(x))
    np.testing.assert_allclose(got, 2 * np.cos(x) - 3 * np.sin(x), atol=4e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ends_of_the_range(name, kernel):
    """Beyond float32's reach: zero, one, the identity or infinity, never NaN."""
    low, high = np.array(FUNCTIONS[name](mx.array([-1e4, 1e4])))
    expected = {
        "exp": (0, np.inf),
        "sigmoid": (0, 1),
        "silu": (0, 1e4),
        "softplus": (0, 1e4),
        "relu2": (0, 1e8),
        "tanh": (-1, 1),
    }
    for got, limit in zip((low, high), expected.get(name, (None, 0.01))):
        if limit is not None:
            assert got == pytest.approx(limit, rel=1e-6, abs=1e-30)
    assert not np.isnan(high)


@pytest.mark.parametrize("name", [*FUNCTIONS, "sincos"])
def test_nan_propagates(name, kernel):
    y = {**FUNCTIONS, "sincos": lambda x: sincos(x)[0] + sincos(x)[1]}[name](mx.array([0.5, np.nan]))
    assert mx.isnan(y).tolist() == [False, True]


@pytest.mark.parametrize("name", [*FUNCTIONS, "sincos"])
def test_bf16_in_bf16_out(name, kernel):
    x = mx.array([0.1, 0.9, 3.0], mx.bfloat16)
    f = {**FUNCTIONS, "sincos": lambda x: sincos(x)[0]}[name]
    y = f(x)
    assert y.dtype == mx.bfloat16
    assert mx.allclose(y.astype(mx.float32), f(x.astype(mx.float32)), rtol=0.01)
    assert mx.grad(lambda v: f(v).sum())(x).dtype == mx.bfloat16


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dialect, dtype", [(None, mx.float32), ("metal", mx.float32), ("cpp", mx.float64)])
def test_elsewhere_they_are_mlx_itself(name, dialect, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "elementary", None)  # a kernel would fail
    with gpu.use_dialect(dialect), mx.stream(mx.cpu):
        y = FUNCTIONS[name](mx.array([0.3, 2.0], dtype))
        assert y.dtype == dtype
        np.testing.assert_allclose(np.array(y), TRUTH[name](np.array([0.3, 2.0])), rtol=1e-6)


def test_sincos_elsewhere_is_mlx_itself():
    x = mx.array([0.3, 2.0])
    sine, cosine = sincos(x)
    assert mx.array_equal(sine, mx.sin(x)) and mx.array_equal(cosine, mx.cos(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elsewhere_the_derivatives_are_the_same(name):
    x = mx.array([0.0, 0.1, 0.19, 0.21, 3.0])
    slope = mx.grad(lambda v: FUNCTIONS[name](v).sum())(x)
    np.testing.assert_allclose(slope, SLOPE[name](np.array(x, np.float64)), rtol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_where_an_element_stands_changes_no_bit_of_it(name, kernel):
    """Alone, in a full register, or in what a register leaves over."""
    x = mx.abs(mx.random.normal((53,), key=mx.random.key(5)))
    whole = FUNCTIONS[name](x)
    assert mx.array_equal(FUNCTIONS[name](x[37:]), whole[37:])
    assert mx.array_equal(FUNCTIONS[name](x[50]), whole[50])


@pytest.mark.parametrize("dialect", [None, "cpp"])
def test_logsumexp_and_its_gradient_are_float64s(dialect):
    x = 10 * mx.random.normal((7, 33), key=mx.random.key(2)) + 500
    wide = np.array(x, np.float64)
    top = wide.max(-1, keepdims=True)
    expected = (top + np.log(np.exp(wide - top).sum(-1, keepdims=True))).squeeze(-1)
    with gpu.use_dialect(dialect):
        np.testing.assert_allclose(np.array(logsumexp(x)), expected, rtol=1e-6)
        slope = mx.grad(lambda x: logsumexp(x).sum())(x)
    np.testing.assert_allclose(np.array(slope), np.exp(wide - expected[:, None]), atol=2e-5)


def test_exp_is_exactly_zero_far_below(kernel):
    assert exp(mx.array([-1e30, -200.0, -mx.inf])).tolist() == [0, 0, 0]
