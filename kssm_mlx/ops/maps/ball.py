"""The kinds of step that `ball_scan` runs over time: kick, affine, and any map of the ball.

With vectors as imaginary quaternions the maps of the ball look like those of the disc,

    M(a) = q + d y(a) conj(d),   y(a) = a (1 + r a)^-1,

q and r vectors, d a quaternion; and they compose by the same rule, factors in order. The derivative of M at a
turns and scales, by d conj(n)^-1 with n = 1 + r a: maps of the ball are conformal.

States and parameters are flat tuples of real arrays [..., G]: vectors x, y, z; quaternions s, x, y, z.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from kssm_mlx.ops.maps.scan import Arrays, Form
from kssm_mlx.ops.maps.vectors import (
    Quaternion,
    Vector,
    conjugate,
    cross,
    dot,
    multiply,
    rotate,
    scale,
    total,
)


def _translate_back(r: Vector, a: Vector) -> Vector:
    """a (1 + r a)^-1."""
    n, across = 1 - dot(r, a), cross(r, a)
    size = 1 / (n * n + dot(across, across))
    return scale(size, total(scale(n, a), cross(across, a)))


# a -> q + d y(a) conj(d); p = q, r, d


def _map_step(p: Arrays, a: Arrays) -> Arrays:
    q, r, d = p[:3], p[3:6], p[6:]
    return total(q, rotate(d, _translate_back(r, a)))


def _compose(after: Arrays, before: Arrays) -> Arrays:
    q1, r1, d1 = before[:3], before[3:6], before[6:]
    r2, d2 = after[3:6], after[6:]
    g = (1 - dot(r2, q1), *cross(r2, q1))  # 1 + r2 q1
    size = 1 / (g[0] * g[0] + dot(g[1:], g[1:]))
    r = total(r1, rotate(conjugate(d1), scale(size, total(r2, scale(-dot(r2, r2), q1)))))
    d = multiply(multiply(d2, g), d1)
    return (*_map_step(after, q1), *r, *(size * x for x in d))


# a -> the translation by k of p a conj(p); parameters p, k, kappa


def _kick_step(p: Arrays, a: Arrays) -> Arrays:
    return translate(p[4:7], rotate(p[:4], a), p[7])


def translate(k: Vector, w: Vector, kappa: float | mx.array) -> Vector:
    """(w + k) (1 + kappa conj(k) w)^-1 in quaternions, the Möbius translation by k.

    In vectors ((1 + 2 kappa k.w + kappa |w|^2) k + (1 - kappa |k|^2) w) over 1 + 2 kappa k.w + kappa^2 |k|^2
    |w|^2, of whose differences nothing is left in fp32 where k and w are opposite on the surface.
    """
    across, both = scale(kappa, cross(k, w)), total(k, w)
    n = 1 + kappa * dot(k, w)
    size = 1 / (n * n + dot(across, across))
    return scale(size, total(scale(n, both), cross(both, across)))


def _kick_map(p: Arrays) -> Arrays:
    rotor, k, kappa = p[:4], p[4:7], p[7]
    r = scale(-kappa, rotate(conjugate(rotor), k))
    shrink = _shrink(k, kappa)
    return (*k, *r, *(shrink * x for x in rotor))


def _shrink(k: Vector, kappa: mx.array) -> mx.array:
    """sqrt(1 - kappa |k|^2); a kick that rounding has put outside the ball counts as on its surface."""
    return mx.sqrt(mx.maximum(1 - kappa * dot(k, k), 0))


# a -> p a conj(p) + k, the kick form at kappa = 0; parameters p, k


def _affine_step(p: Arrays, a: Arrays) -> Arrays:
    return total(rotate(p[:4], a), p[4:])


def _affine_map(p: Arrays) -> Arrays:
    zero = mx.zeros_like(p[4])
    return (*p[4:], zero, zero, zero, *p[:4])


NOTHING = (1, 0, 0, 0, 0, 0, 0)  # no rotation, no kick
MAP = Form(_map_step, lambda p: p, (0,) * 6 + (1, 0, 0, 0), compose=_compose)
KICK = Form(_kick_step, _kick_map, NOTHING, general=MAP, constants=1)
AFFINE = Form(_affine_step, _affine_map, NOTHING, general=MAP)


# ---------------------------------------------------------------------------------------------------------
# The adjoint of the kick.


class Adjoint(NamedTuple):
    """Of one step at a = a_{t-1}, pulled by g, the cotangent of a_t: gradients in order of the parameters."""

    rotor: Quaternion
    kick: Vector
    kappa: mx.array


def slope(p: Arrays, a: Arrays) -> Quaternion:
    """The quaternion that the derivative of the kick step at a turns by."""
    rotor, k, kappa = p[:4], p[4:7], p[7]
    w = rotate(rotor, a)
    n, size = _denominator(k, w, kappa)
    shrink = _shrink(k, kappa) * size
    return tuple(shrink * x for x in multiply(n, rotor))  # type: ignore[return-value]


def _denominator(k: Vector, w: Vector, kappa: mx.array) -> tuple[Quaternion, mx.array]:
    """n = 1 + kappa conj(k) w, and 1 / |n|^2."""
    n = (1 + kappa * dot(k, w), *scale(-kappa, cross(k, w)))
    return n, 1 / (n[0] * n[0] + dot(n[1:], n[1:]))


def kick_adjoint(p: Arrays, a: Arrays, a_next: Arrays, g: Arrays) -> Adjoint:
    """The gradients of one step, elementwise; a the state before it, a_next the one after it."""
    rotor, k, kappa = p[:4], p[4:7], p[7]
    w = rotate(rotor, a)
    n, size = _denominator(k, w, kappa)
    y = total(w, scale(kappa * dot(w, w), k))  # w conj(n)
    gw, gk, gy, gz = dot(g, w), dot(g, k), dot(g, y), dot(g, a_next)
    yz, zk, ky = dot(y, a_next), dot(a_next, k), dot(k, y)
    direct = total(scale(n[0] + kappa * yz, g), scale(-kappa * gw, k), scale(kappa * gk, w))
    g_kick = scale(size, total(direct, scale(-kappa * gz, y), scale(-kappa * gy, a_next)))
    g_kappa = -size * (gz * ky + zk * gy - yz * gk)
    g_w = scale((1 - kappa * dot(k, k)) * size * size, rotate(conjugate(n), g))
    return Adjoint(_rotor_adjoint(rotor, a, g_w), g_kick, g_kappa)


def _rotor_adjoint(rotor: Quaternion, a: Arrays, g_w: Vector) -> Quaternion:
    """-2 g_w p a."""
    s, u = rotor[0], rotor[1:]
    c, m = -dot(u, a), total(scale(s, a), cross(u, a))
    return (2 * dot(g_w, m), *scale(-2, total(scale(c, g_w), cross(g_w, m))))
