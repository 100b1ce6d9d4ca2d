"""Vectors of space and quaternions as tuples of real arrays, so that a compiled step fuses into one pass.

A quaternion (s, x, y, z) turns a vector v and scales it by its squared length: p v conj(p).
"""

from __future__ import annotations

from typing import Any

Scalar = Any  # mx.array or a number
Vector = tuple[Any, ...]  # three
Quaternion = tuple[Any, ...]  # four


def dot(a: Vector, b: Vector) -> Scalar:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vector, b: Vector) -> Vector:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def scale(s: Scalar, a: Vector) -> Vector:
    return (s * a[0], s * a[1], s * a[2])


def total(*vectors: Vector) -> Vector:
    """Their sum."""
    (x, y, z), *rest = vectors
    for v in rest:
        x, y, z = x + v[0], y + v[1], z + v[2]
    return x, y, z


def multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """The product a b."""
    u, v = a[1:], b[1:]
    return (a[0] * b[0] - dot(u, v), *total(scale(a[0], v), scale(b[0], u), cross(u, v)))


def conjugate(p: Quaternion) -> Quaternion:
    return (p[0], -p[1], -p[2], -p[3])


def rotate(p: Quaternion, v: Vector) -> Vector:
    """p v conj(p)."""
    s, u = p[0], p[1:]
    return total(scale(s * s - dot(u, u), v), scale(2 * dot(u, v), u), scale(2 * s, cross(u, v)))
