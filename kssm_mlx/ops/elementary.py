"""exp, sigmoid, silu, softplus, relu2, tanh(x)/x and sincos, as polynomials where the CPU build has none.

MLX's x86 build calls scalar libm, 12-35 ns an element: more than the recurrences around it. On x86 CPUs
these functions are a range reduction and a polynomial out of + and *, which vectorise (2-4 ns). Everywhere
else, and for float64, they are MLX's own. Each carries its derivative, written with what the forward pass
already has.

Accuracy, float32: relative error below 1e-6 over the whole range (tests/ops/test_elementary.py).
Source: Cody & Waite 1980 for the reductions; Taylor coefficients, and atanh's series for the logarithm.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from functools import cache, partial, wraps

import mlx.core as mx

# Adding and subtracting 1.5 * 2^23 rounds a float32 to an integer and leaves it in the low bits of the sum.
ROUND = 12582912.0
# With 127 on top those low bits are the exponent field of 2^n, to be shifted into place.
_EXPONENT = ROUND + 127
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
PI_HIGH, PI_MID, PI_LOW = 3.140625, 9.67502593994140625e-4, 1.509957990139636e-7
EXPM1_BY_X = [1 / math.factorial(n + 1) for n in range(7)]
SIN_BY_X = [(-1) ** n / math.factorial(2 * n + 1) for n in range(6)]
COS = [(-1) ** n / math.factorial(2 * n) for n in range(7)]
_ATANH = [2 / (2 * n + 1) for n in range(7)]
_TANH_BY_X = [1, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875]
_TANH_BY_X_SLOPE = [n * c for n, c in enumerate(_TANH_BY_X)][1:]


@cache
def _x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _polynomials_pay(x: mx.array) -> bool:
    return _x86() and x.dtype != mx.float64 and mx.default_device() == mx.cpu


def _either(theirs: Callable) -> Callable:
    """Use the polynomial in fp32 on x86 CPUs, and `theirs` everywhere else."""

    def choose(ours: Callable) -> Callable:
        @wraps(ours)
        def function(x: mx.array):
            if not _polynomials_pay(x):
                return theirs(x)
            y = ours(x.astype(mx.float32))
            return tuple(part.astype(x.dtype) for part in y) if isinstance(y, tuple) else y.astype(x.dtype)

        return function

    return choose


def _polynomial(x: mx.array, coefficients: list[float]) -> mx.array:
    """Estrin's scheme: mx.compile fuses chains of 11 operations at most, and Horner's would be longer."""
    terms = list(coefficients)
    while len(terms) > 1:
        pairs = [low + high * x for low, high in zip(terms[::2], terms[1::2])]
        terms, x = pairs + terms[2 * len(pairs) :], x * x
    return terms[0]


def _expm1_parts(x: mx.array) -> tuple[mx.array, mx.array]:
    """(2^n, exp(r) - 1) with exp(x) = 2^n exp(r): bits of a rounded sum, and a polynomial."""
    x = mx.minimum(x, 88.0)
    return _expm1_parts_below(x)


def _expm1_parts_below(x: mx.array) -> tuple[mx.array, mx.array]:
    """The same for x <= 88, which saves a pass."""
    # Below -87.7 the exponent field is 0, and so is 2^n.
    x = mx.maximum(x, -88.2)
    shifted = x * LOG2E + _EXPONENT
    n = shifted - _EXPONENT
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    two_to_n = (shifted.view(mx.int32) << 23).view(mx.float32)
    return two_to_n, r * _polynomial(r, EXPM1_BY_X)


def sealed(x: mx.array) -> mx.array:
    """x, where mx.compile must begin a new kernel.

    It fuses from the last operation backwards, 11 deep. A constant that falls just outside becomes an array
    of stride 0, and a kernel with such an input does not vectorise: three times slower. Views are not fused.
    """
    return x.view(mx.int32).view(mx.float32)


def _exp(x: mx.array) -> mx.array:
    power, expm1 = _expm1_parts(x)
    return sealed(power * expm1 + power)


def _exp_below(x: mx.array) -> mx.array:
    power, expm1 = _expm1_parts_below(x)
    return sealed(power * expm1 + power)


def _sigmoid(x: mx.array) -> mx.array:
    return 1 / (1 + _exp(-x))


def _log1p_unit(u: mx.array) -> mx.array:
    """log(1 + u) for u in [0, 1], by 2 atanh(u / (2 + u))."""
    t = u / (2 + u)
    return t * _polynomial(t * t, _ATANH)


@_either(mx.exp)
@mx.custom_function
def exp(x: mx.array) -> mx.array:
    """exp(x)."""
    return _exp(x)


@exp.__wrapped__.vjp
def _exp_vjp(x, g, y):
    return g * y


@_either(mx.exp)
@mx.custom_function
def decay(x: mx.array) -> mx.array:
    """exp(x) for x <= 0."""
    return _exp_below(x)


@decay.__wrapped__.vjp
def _decay_vjp(x, g, y):
    return g * y


@_either(mx.sigmoid)
@mx.custom_function
def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x))."""
    return _sigmoid(x)


@sigmoid.__wrapped__.vjp
def _sigmoid_vjp(x, g, y):
    return g * y * (1 - y)


@_either(lambda x: x * mx.sigmoid(x))
@mx.custom_function
def silu(x: mx.array) -> mx.array:
    """x sigmoid(x)."""
    return x * _sigmoid(x)


@silu.__wrapped__.vjp
def _silu_vjp(x, g, y):
    s = _sigmoid(x)
    return g * (s + y * (1 - s))


@_either(lambda x: mx.square(mx.maximum(x, 0)))
@mx.custom_function
def relu2(x: mx.array) -> mx.array:
    """max(x, 0)^2; alone, a maximum vectorises, inside a fused kernel it does not."""
    return mx.square(sealed(mx.maximum(x, 0)))


@relu2.__wrapped__.vjp
def _relu2_vjp(x, g, y):
    return 2 * g * sealed(mx.maximum(x, 0))


@_either(lambda x: mx.logaddexp(x, mx.array(0, x.dtype)))
@mx.custom_function
def softplus(x: mx.array) -> mx.array:
    """log(1 + exp(x))."""
    size = mx.abs(x)
    return 0.5 * (x + size) + _log1p_unit(_exp_below(-size))


@softplus.__wrapped__.vjp
def _softplus_vjp(x, g, y):
    return g * _sigmoid(x)


@_either(partial(mx.logsumexp, axis=-1))
@mx.custom_function
def logsumexp(x: mx.array) -> mx.array:
    """log(sum(exp(x))) over the last axis, whose gradient is the softmax. Shapes: [..., V] -> [...]."""
    top, e = _above(x)
    return (top + mx.log(e.sum(axis=-1, keepdims=True))).squeeze(-1)


@logsumexp.__wrapped__.vjp
def _logsumexp_vjp(x, g, y):
    # exp(x - y) would inherit the rounding of y, which may be large.
    _, e = _above(x)
    return g[..., None] / e.sum(axis=-1, keepdims=True) * e


def _above(x: mx.array) -> tuple[mx.array, mx.array]:
    """The largest of each row, and exp of the others relative to it."""
    top = x.max(axis=-1, keepdims=True)
    return top, _exp_below(x - top)


@_either(lambda x: (mx.sin(x), mx.cos(x)))
@mx.custom_function
def sincos(x: mx.array) -> tuple[mx.array, mx.array]:
    """(sin x, cos x), x in radians, |x| < 1e4; absolute error below 5e-7.

    From the half angle y in [-pi/2, pi/2], so that no quadrant has to be selected: 2 sin y cos y and
    cos^2 y - sin^2 y.
    """
    n = (x * (0.5 / math.pi) + ROUND) - ROUND
    y = ((0.5 * x - n * PI_HIGH) - n * PI_MID) - n * PI_LOW
    square = y * y
    s, c = y * _polynomial(square, SIN_BY_X), _polynomial(square, COS)
    return 2 * s * c, (c - s) * (c + s)


@sincos.__wrapped__.vjp
def _sincos_vjp(x, g, y):
    return g[0] * y[1] - g[1] * y[0]


def _tanh_by_x_anywhere(s: mx.array) -> mx.array:
    small = s < 0.2
    x = mx.sqrt(mx.where(small, 1.0, s))
    return mx.where(small, _polynomial(mx.where(small, s, 0.0), _TANH_BY_X), mx.tanh(x) / x)


@_either(_tanh_by_x_anywhere)
@mx.custom_function
def tanh_by_x(s: mx.array) -> mx.array:
    """tanh(x) / x as a function of s = x^2 >= 0: smooth through zero, unlike tanh(sqrt(s)) / sqrt(s)."""
    x = mx.sqrt(s + 1e-12)
    power, expm1 = _expm1_parts_below(-2 * x)
    loss = sealed(power * expm1 + (power - 1))
    return -loss / ((2 + loss) * x)


@tanh_by_x.__wrapped__.vjp
def _tanh_by_x_vjp(s, g, y):
    small = s < 0.2
    exact = (1 - s * y * y - y) / (2 * mx.where(small, 1.0, s))
    return g * mx.where(small, _polynomial(mx.minimum(s, 0.2), _TANH_BY_X_SLOPE), exact)
