"""Maps of the unit disc that move Kuramoto populations: M(z) = q + d z / (1 + r z).

A population of phases theta_j with Lorentzian frequencies (centre omega, width gamma) in an external field h,
theta_j' = omega_j + 2 Im(h exp(-i theta_j)), has the order parameter z = mean exp(i theta_j) that obeys

    z' = lam z + h - kappa conj(h) z^2,   lam = i omega - gamma          (kappa = 1 is Kuramoto)

a Riccati equation whose flow is such a map. The triple (q, r, d) is a passive scattering matrix: |q|, |r| < 1
and |d| <= 1 - |q|^2 for every composite in any order, so nothing overflows and no clamp is needed.

Everything here is built from + - * / and a few functions shared by mlx and numpy, so the same lines run in
complex64 on a GPU and in complex128 as the test oracle. Complex squares are products: the gradient of MLX's
complex `**` is wrong (it lacks a conjugation). A numpy scalar from the left would turn arrays into numpy's.

Source: Ott & Antonsen 2008; Marvel, Mirollo & Strogatz 2009; Redheffer 1960 (star product).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

Array = Any


def _namespace(x: Array) -> Any:
    return np if isinstance(x, (np.ndarray, np.generic, complex, float)) else mx


class Disc(NamedTuple):
    """M(z) = q + d z / (1 + r z). q = M(0), -1/r is the pole (outside the disc), d = M'(0)."""

    q: Array
    r: Array
    d: Array


def identity_like(z: Array) -> Disc:
    """The map that leaves every z where it is."""
    xp = _namespace(z)
    return Disc(xp.zeros_like(z), xp.zeros_like(z), xp.ones_like(z))


def act(m: Disc, z: Array) -> Array:
    """M(z). Shapes: m's fields and z broadcast."""
    return m.q + m.d * z / (1 + m.r * z)


def derivative(m: Disc, z: Array) -> Array:
    """M'(z) = d / (1 + r z)^2; M is holomorphic in z, so this one number is the whole Jacobian."""
    den = 1 + m.r * z
    return m.d / (den * den)


def compose(after: Disc, before: Disc) -> Disc:
    """The map `after o before` (Redheffer star product)."""
    g = 1 / (1 + after.r * before.q)
    return Disc(
        q=after.q + after.d * before.q * g,
        r=before.r + before.d * after.r * g,
        d=after.d * before.d * g * g,
    )


def kick_field(h: Array, kappa: float = 1.0) -> Array:
    """The impulse k = h tanh(sqrt(kappa) |h|) / (sqrt(kappa) |h|) that a field of area h delivers at once."""
    xp = _namespace(h)
    x = kappa**0.5 * xp.abs(h)
    small = x < 1e-4
    safe = xp.where(small, 1.0, x)
    return h * xp.where(small, 1 - x * x / 3, xp.tanh(safe) / safe)


def kick_leaf(a: Array, h: Array, kappa: float = 1.0) -> Disc:
    """Free flow a = exp(lam tau), then a field impulse: z -> (a z + k) / (1 + kappa conj(k) a z).

    Kuramoto with impulsive forcing; first order to `hold_leaf` (Lie splitting). kappa = 0 is a complex linear
    state-space model with the same parameters.
    """
    xp = _namespace(h)
    k = kick_field(h, kappa)
    return Disc(q=k, r=kappa * xp.conj(k) * a, d=a * (1 - kappa * xp.abs(k) ** 2))


def mean_decay(y: Array) -> Array:
    """(1 - exp(-y)) / y, to full precision for small |y|, where the subtraction would cancel.

    The Taylor series in Horner form reaches 1e-16 at |y| = 0.3; the quotient keeps 2e-7 above it in single.
    """
    xp = _namespace(y)
    small = xp.abs(y) < 0.3
    near, far = xp.where(small, y, 0 * y), xp.where(small, 1 + 0 * y, y)
    series = 1 + 0 * y
    for k in range(13, 1, -1):
        series = 1 - near / k * series
    return xp.where(small, series, (1 - xp.exp(-far)) / far)


def hold_leaf(lam: Array, h: Array, tau: Array, kappa: float = 1.0) -> Disc:
    """The exact flow over a time tau in a constant field h.

    s^2 = (lam/2)^2 + kappa |h|^2; written with exp(-2 s tau), Re s >= 0, so that no exponential grows.
    """
    xp = _namespace(h)
    s = xp.sqrt(lam * lam / 4 + kappa * xp.abs(h) ** 2 + 0j)
    s = xp.where(xp.real(s) < 0, -s, s)
    e = xp.exp(-2 * s * tau)
    sinc = tau * mean_decay(2 * s * tau)
    den = (1 + e) / 2 - lam / 2 * sinc
    return Disc(q=h * sinc / den, r=kappa * xp.conj(h) * sinc / den, d=e / (den * den))


def log_memory(r_before: Array, r_after: Array, gamma_tau: Array) -> Array:
    """ln |dz_t / dz_{t-1}| of one kick step (kappa = 1), from order parameters alone.

    Truth: the field acts by isometries of the hyperbolic disc and cancels: memory depends on R and gamma,
    |dz_t/dz_{t-1}| = |a| (1 - R_t^2) / (1 - |a|^2 R_{t-1}^2), |a| = exp(-gamma tau).
    """
    xp = _namespace(r_after)
    shrunk = xp.exp(-2 * gamma_tau) * r_before**2
    return -gamma_tau + xp.log1p(-(r_after**2)) - xp.log1p(-shrunk)
