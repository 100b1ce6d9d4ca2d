"""Kuramoto oscillators on spheres, and the maps of the ball that move a whole population at once.

Oscillators are unit vectors of R^D (D = 2 is the phase), x' = W x + h - (h . x) x, W antisymmetric. However
many they are, they move by Möbius maps of the ball; a population that began uniform is one point a of it:

    a' = W a + (1 + |a|^2)/2 h - (h . a) a

The order parameter, the mean of the x, lies along a; its length R is a function of |a| and D alone. A field
h alone over unit time, from the centre, is the kick tanh(|h| / 2) along h; with h = 2 h' that of the disc.

Everything is built from + - * / and functions shared by mlx and numpy, on the last axis.

Source: Lipton, Mirollo & Strogatz 2019, arXiv 1907.07150; Chandra, Girvan & Ott 2019, Phys. Rev. X 9, 011002.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx.errors import ConfigError

Array = Any
POINTS = 200  # of the Gauss-Jacobi quadrature of R where there is no closed form


def _namespace(x: Array) -> Any:
    return np if isinstance(x, (np.ndarray, np.generic, float)) else mx


def _dot(x: Array, y: Array) -> Array:
    return (x * y).sum(-1, keepdims=True)


def oscillator_velocity(x: Array, W: Array, h: Array) -> Array:
    """x' = W x + h - (h . x) x of unit vectors. Shapes: x, h [..., D]; W [D, D] antisymmetric -> [..., D]."""
    return x @ W.T + h - _dot(h, x) * x


def ball_velocity(a: Array, W: Array, h: Array) -> Array:
    """a' of the population's point of the ball. Shapes: as `oscillator_velocity`."""
    return a @ W.T + (1 + _dot(a, a)) / 2 * h - _dot(h, a) * a


def kick(h: Array, kappa: float = 1.0) -> Array:
    """Where a field of 2 h over unit time takes a population from the centre: tanh(|h|) along h.

    kappa scales the curvature, tanh(√κ |h|) / √κ; 0 is h itself. Shapes: [..., D] -> [..., D].
    """
    if kappa == 0:
        return h
    xp, root = _namespace(h), math.sqrt(kappa)
    # tanh(x) / x is 1 to the last bit of float64 below 1e-8, where 0 / 0 would be.
    size = xp.maximum(xp.sqrt(_dot(h, h)), 1e-12)
    return h * (xp.tanh(root * size) / (root * size))


def translate(k: Array, v: Array, kappa: float = 1.0) -> Array:
    """The Möbius translation of the ball that takes the centre to k, at v. Shapes: broadcast [..., D].

    (k ⊕ v) = ((1 + 2κ k.v + κ|v|²) k + (1 - κ|k|²) v) / (1 + 2κ k.v + κ²|k|²|v|²); kappa = 0 is k + v.
    """
    kv, kk, vv = _dot(k, v), _dot(k, k), _dot(v, v)
    top = (1 + 2 * kappa * kv + kappa * vv) * k + (1 - kappa * kk) * v
    return top / (1 + 2 * kappa * kv + kappa * kappa * kk * vv)


def conformal_factor(k: Array, v: Array, kappa: float = 1.0) -> Array:
    """How much `translate` by k stretches around v, whatever the direction. Shapes: [..., D] -> [..., 1]."""
    return (1 - kappa * _dot(k, k)) / (1 + 2 * kappa * _dot(k, v) + kappa * kappa * _dot(k, k) * _dot(v, v))


def rotate(w: Array, v: Array) -> Array:
    """v turned by |w| radians about w (D = 3), or by the angle w (D = 2).

    Shapes: w [..., 3] or [..., 1]; v [..., D]. Source: Rodrigues' formula.
    """
    xp, D = _namespace(v), v.shape[-1]
    if D == 2:
        c, s = xp.cos(w), xp.sin(w)
        return xp.concatenate([c * v[..., :1] - s * v[..., 1:], s * v[..., :1] + c * v[..., 1:]], axis=-1)
    if D != 3:
        raise ConfigError(f"rotate knows 2 and 3 dimensions, got {D}; give a matrix instead: v @ Q.T")
    angle = xp.maximum(xp.sqrt(_dot(w, w)), 1e-12)
    axis = w / angle
    c, s = xp.cos(angle), xp.sin(angle)
    return c * v + s * _cross_product(axis, v) + (1 - c) * _dot(axis, v) * axis


def _cross_product(x: Array, y: Array) -> Array:
    xp = _namespace(x)
    (x0, x1, x2), (y0, y1, y2) = ([z[..., i : i + 1] for i in range(3)] for z in (x, y))
    return xp.concatenate([x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0], axis=-1)


def step(a: Array, w: Array, decay: Array, h: Array, kappa: float = 1.0) -> Array:
    """One token: rotate by w, decay, kick by the field h.

    Shapes: a, h [..., D]; w as `rotate` has it; decay [..., 1] -> [..., D].
    """
    return translate(kick(h, kappa), decay * rotate(w, a), kappa)


def boost(k: Array) -> Array:
    """`translate` by k as a Lorentz matrix, so that maps compose by a product. Shapes: [D] -> [D+1, D+1]."""
    size = float(np.sqrt(np.sum(k * k)))
    rapidity = 2 * math.atanh(size)
    n = k / size if size else np.zeros_like(k)
    D = k.shape[-1]
    L = np.eye(D + 1)
    L[0, 0] = math.cosh(rapidity)
    L[0, 1:] = L[1:, 0] = math.sinh(rapidity) * n
    L[1:, 1:] += (math.cosh(rapidity) - 1) * np.outer(n, n)
    return L


def act(L: Array, v: Array) -> Array:
    """The map of a Lorentz matrix at points of the ball. Shapes: L [D+1, D+1]; v [..., D]."""
    vv = _dot(v, v)
    X = np.concatenate([(1 + vv) / (1 - vv), 2 * v / (1 - vv)], axis=-1) @ L.T
    return X[..., 1:] / (1 + X[..., :1])


def order_from_ball(size: Array, dimensions: int) -> Array:
    """R of a population at |a| = size, uniform at the start: |a| itself for D = 2, above it for more.

    D = 3: (1 + s²)/(2s) - (1 - s²)²/(4s²) ln((1 + s)/(1 - s)), about 4s/3 for small s. Float64, numpy.
    """
    s = np.asarray(size, np.float64)
    if dimensions == 2:
        return s
    if dimensions == 3:
        return _order_on_sphere(s)
    return _order_by_quadrature(s, dimensions)


def _order_on_sphere(s: np.ndarray) -> np.ndarray:
    inside = np.clip(s, 1e-3, 1 - 1e-15)
    log = np.log1p(inside) - np.log1p(-inside)
    R = (1 + inside**2) / (2 * inside) - (1 - inside**2) ** 2 / (4 * inside**2) * log
    # Below, the two terms cancel; the series is good to 1e-14 there.
    series = 4 * s / 3 - 4 * s**3 / 15 - 4 * s**5 / 105
    return np.where(s < 1e-3, series, np.where(s >= 1, 1.0, R))


def sphere_order(size: mx.array, kappa: float = 1.0) -> mx.array:
    """R of populations on the sphere at |a| = size, fp32, as `order_from_ball` to 1e-6; for a trace.

    kappa scales the ball as it does in `translate`: R(√κ |a|) / √κ, of which 4 |a| / 3 is left at kappa = 0.
    """
    if kappa == 0:
        return 4 / 3 * size
    root = math.sqrt(kappa)
    s = mx.minimum(root * size, 1 - 6e-8)
    near, far = mx.minimum(s, 0.5), mx.maximum(s, 0.5)
    # 4 s / 3 - 4 s³ / 15 - 4 s⁵ / 105 - ...: below 0.5 the closed form cancels in fp32.
    square, series = near * near, mx.zeros_like(s)
    for k in reversed(range(10)):
        series = -4 / ((2 * k - 1) * (2 * k + 1) * (2 * k + 3)) + square * series
    log = mx.log1p(far) - mx.log1p(-far)
    closed = (1 + far * far) / (2 * far) - mx.square((1 - far * far) / (2 * far)) * log
    return mx.where(s < 0.5, near * series, closed) / root


def sphere_size(R: mx.array, kappa: float = 1.0) -> mx.array:
    """The |a| at which populations on the sphere have this R: the inverse of `sphere_order`, by bisection."""
    if kappa == 0:
        return 0.75 * R
    top = 1 / math.sqrt(kappa)
    low, high = mx.zeros_like(R), mx.full(R.shape, top)
    for _ in range(26):  # to the last digit of fp32
        middle = (low + high) / 2
        below = sphere_order(middle, kappa) < R
        low, high = mx.where(below, middle, low), mx.where(below, high, middle)
    return (low + high) / 2


def _order_by_quadrature(s: np.ndarray, dimensions: int) -> np.ndarray:
    """The mean of the component along a over the images of the sphere's points, by their angle to a."""
    from scipy.special import roots_jacobi

    power = (dimensions - 3) / 2  # the density of the cosine c of that angle is (1 - c²)^power
    c, weights = roots_jacobi(POINTS, power, power)
    s = s[..., None]
    along = (2 * (1 + s * c) * s + (1 - s**2) * c) / (1 + 2 * s * c + s**2)
    return (along * weights).sum(-1) / weights.sum()


def ball_from_order(R: Array, dimensions: int) -> np.ndarray:
    """The |a| at which a population has this R, 0 <= R <= 1: the inverse of `order_from_ball`."""
    from scipy.optimize import brentq

    if dimensions == 2:
        return np.asarray(R, np.float64)

    def solve(r: float) -> float:
        if not 0 <= r <= 1:
            raise ConfigError(f"an order parameter is between 0 and 1, got {r:g}")
        if r in (0.0, 1.0):
            return r
        root: Any = brentq(lambda s: float(order_from_ball(s, dimensions)) - r, 0.0, 1.0, xtol=1e-15)
        return float(root)

    return np.vectorize(solve, otypes=[np.float64])(np.asarray(R, np.float64))
