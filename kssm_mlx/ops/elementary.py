"""exp, sigmoid, silu, softplus, relu2, tanh, tanh(x)/x and sincos, by kernels where MLX's are slow.

On Linux CPUs MLX calls scalar libm, 12-35 ns an element: more than the recurrences around it. There these
functions are kernels (`kernels/elementary.inc`), a range reduction and a polynomial for a register full of
elements. Everywhere else, and for float64, they are MLX's own. Each carries its derivative, written with what
the forward pass already has.

Accuracy of the kernels, float32: relative error below 1e-6 over the whole range, absolute error of sincos
below 5e-7 for |x| < 1e4 (tests/ops/test_elementary.py).
Source: Cody & Waite 1980 for the reductions; Taylor coefficients, and atanh's series for the logarithm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import mlx.core as mx

from kssm_mlx.ops import custom_function, dispatch

Function = Callable[..., mx.array]

_TANH_BY_X = [1, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875]


def _by_kernel(name: str, x: mx.array) -> mx.array:
    return dispatch.module("elementary").elementary(name, x)


def _polynomial(x: mx.array, coefficients: list[float]) -> mx.array:
    """Estrin's scheme: mx.compile fuses chains of 11 operations at most, and Horner's would be longer."""
    terms: list[Any] = list(coefficients)
    while len(terms) > 1:
        pairs = [low + high * x for low, high in zip(terms[::2], terms[1::2])]
        terms, x = pairs + terms[2 * len(pairs) :], x * x
    return terms[0]


def _with_kernel(slope: Function) -> Callable[[Function], Function]:
    """Let the kernel of the same name compute it where there is one. slope(x, y) -> dy/dx, by kernels too."""

    def choose(theirs: Function) -> Function:
        name = theirs.__name__

        @custom_function
        def ours(x):
            return _by_kernel(name, x)

        @ours.vjp
        def _(x, g, y):
            return g * slope(x, y)

        @wraps(theirs)
        def function(x: mx.array, *, impl: str = "auto") -> mx.array:
            if x.dtype == mx.float64 or not dispatch.kernel("elementary", impl):
                return theirs(x)
            return ours(x.astype(mx.float32)).astype(x.dtype)

        return function

    return choose


@_with_kernel(lambda x, y: y)
def exp(x: mx.array) -> mx.array:
    """exp(x)."""
    return mx.exp(x)


@_with_kernel(lambda x, y: y * (1 - y))
def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x))."""
    return mx.sigmoid(x)


def biased_sigmoid(x: mx.array, bias: mx.array, *, impl: str = "auto") -> mx.array:
    """sigmoid(x + bias) in one pass. Shapes: x [..., D]; bias [D]."""
    dtype = mx.result_type(x, bias)
    if dtype == mx.float64 or not dispatch.kernel("elementary", impl):
        return mx.sigmoid(x + bias)
    return _biased_sigmoid(x, bias).astype(dtype)


@custom_function
def _biased_sigmoid(x: mx.array, bias: mx.array) -> mx.array:
    return dispatch.module("elementary").biased_sigmoid(x, bias)


@_biased_sigmoid.vjp
def _(primals, g, y):
    x, bias = primals
    g_x = g * y * (1 - y)
    return g_x.astype(x.dtype), g_x.reshape(-1, x.shape[-1]).sum(0).astype(bias.dtype)


def _slope_of_silu(x: mx.array, y: mx.array) -> mx.array:
    s = _by_kernel("sigmoid", x)
    return s + y * (1 - s)


@_with_kernel(_slope_of_silu)
def silu(x: mx.array) -> mx.array:
    """x sigmoid(x)."""
    return x * mx.sigmoid(x)


@_with_kernel(lambda x, y: _by_kernel("sigmoid", x))
def softplus(x: mx.array) -> mx.array:
    """log(1 + exp(x))."""
    return mx.logaddexp(x, mx.array(0, x.dtype))


@_with_kernel(lambda x, y: _by_kernel("slope_of_relu2", x))
def relu2(x: mx.array) -> mx.array:
    """max(x, 0)^2."""
    return mx.square(mx.maximum(x, 0))


@_with_kernel(lambda x, y: 1 - y * y)
def tanh(x: mx.array) -> mx.array:
    """tanh(x)."""
    return mx.tanh(x)


@_with_kernel(lambda s, y: _by_kernel("slope_of_tanh_by_x", s))
def tanh_by_x(s: mx.array) -> mx.array:
    """tanh(x) / x as a function of s = x^2 >= 0: smooth through zero, unlike tanh(sqrt(s)) / sqrt(s)."""
    small = s < 0.2
    x = mx.sqrt(mx.where(small, 1.0, s))
    return mx.where(small, _polynomial(mx.where(small, s, 0.0), _TANH_BY_X), mx.tanh(x) / x)


@_with_kernel(lambda x, y: _by_kernel("cos", x))
def sin(x: mx.array) -> mx.array:
    """sin(x), x in radians, |x| < 1e4."""
    return mx.sin(x)


@_with_kernel(lambda x, y: -_by_kernel("sin", x))
def cos(x: mx.array) -> mx.array:
    """cos(x), x in radians, |x| < 1e4."""
    return mx.cos(x)


def sincos(x: mx.array) -> tuple[mx.array, mx.array]:
    """(sin x, cos x), x in radians, |x| < 1e4."""
    return sin(x), cos(x)


def logsumexp(x: mx.array) -> mx.array:
    """log(sum(exp(x))) over the last axis, whose gradient is the softmax. Shapes: [..., V] -> [...]."""
    if x.dtype == mx.float64 or not dispatch.kernel("elementary", "auto"):
        return mx.logsumexp(x, axis=-1)
    return _logsumexp(x.astype(mx.float32)).astype(x.dtype)


@custom_function
def _logsumexp(x: mx.array) -> mx.array:
    top, e = _exp_below_largest(x)
    return (top + mx.log(e.sum(axis=-1, keepdims=True))).squeeze(-1)


@_logsumexp.vjp
def _(x, g, y):
    # exp(x - y) would inherit the rounding of y, which may be large.
    _, e = _exp_below_largest(x)
    return g[..., None] / e.sum(axis=-1, keepdims=True) * e


def _exp_below_largest(x: mx.array) -> tuple[mx.array, mx.array]:
    """The largest of each row, and exp of the others relative to it."""
    top = x.max(axis=-1, keepdims=True)
    return top, exp(x - top)
