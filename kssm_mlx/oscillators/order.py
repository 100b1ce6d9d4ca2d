"""Order parameters: how together a population of phases is, and where it points.

A population is the last axis of `theta`; every axis before it is a batch. The mean unit vector is kept as a
real pair (x, y) = (mean cos theta, mean sin theta), which is two reductions over N, works in float64 and
has safe gradients. R = |(x, y)| is 0 for incoherence and 1 for lock-step; psi is its angle.

Source: Kuramoto 1984; Daido 1996 (higher harmonics).
"""

from __future__ import annotations

import math

import mlx.core as mx

Pair = tuple[mx.array, mx.array]


def unit_vector(theta: mx.array) -> Pair:
    """(cos theta, sin theta), as exact as the dtype.

    The float64 sine and cosine of MLX on the CPU are good to single precision only (6e-8); its float64
    tangent is exact, so there they are built from tan(theta / 4) of the wrapped angle.

    Shapes: any -> two of the same.
    """
    if theta.dtype != mx.float64:
        return mx.cos(theta), mx.sin(theta)
    t = mx.tan((theta - 2 * math.pi * mx.round(theta / (2 * math.pi))) / 4)
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # of theta / 2
    return cos * cos - sin * sin, 2 * sin * cos


def mean_vector(cos: mx.array, sin: mx.array) -> Pair:
    """The mean of unit vectors over the population, as a pair that broadcasts against it.

    Shapes: cos, sin [..., N] -> two of [..., 1].
    """
    return mx.mean(cos, axis=-1, keepdims=True), mx.mean(sin, axis=-1, keepdims=True)


def order_parameter(theta: mx.array) -> Pair:
    """Z = mean exp(i theta) as (Re Z, Im Z). Shapes: [..., N] -> two of [...]."""
    cos, sin = unit_vector(theta)
    return mx.mean(cos, axis=-1), mx.mean(sin, axis=-1)


def modulus(x: mx.array, y: mx.array) -> mx.array:
    """|(x, y)| whose gradient at the origin is 0, where the plain square root gives NaN."""
    square = x * x + y * y
    at_origin = square == 0
    return mx.where(at_origin, 0.0, mx.sqrt(mx.where(at_origin, 1.0, square)))


def coherence(theta: mx.array) -> mx.array:
    """R = |Z|, between 0 and 1. Shapes: [..., N] -> [...].

    Truth: all phases equal give 1; N equally spaced phases give 0.
    """
    return modulus(*order_parameter(theta))


def mean_phase(theta: mx.array) -> mx.array:
    """psi = arg Z in (-pi, pi], radians. Shapes: [..., N] -> [...]."""
    x, y = order_parameter(theta)
    return mx.arctan2(y, x)


def harmonics(theta: mx.array, count: int) -> Pair:
    """The Daido moments Z_n = mean exp(i n theta), n = 1..count, from one sine and one cosine.

    exp(i n theta) is built by multiplying with exp(i theta): as accurate as `count` sines, and faster.

    Shapes: [..., N] -> two of [..., count].
    Truth: on the Ott-Antonsen manifold Z_n = Z_1^n.
    """
    cos, sin = unit_vector(theta)
    x, y, real, imaginary = cos, sin, [], []
    for n in range(count):
        if n:
            x, y = x * cos - y * sin, x * sin + y * cos
        real.append(mx.mean(x, axis=-1))
        imaginary.append(mx.mean(y, axis=-1))
    return mx.stack(real, axis=-1), mx.stack(imaginary, axis=-1)


def local_order(theta: mx.array, weights: mx.array) -> Pair:
    """Z seen from each of M places: the mean of exp(i theta_j) weighted by one row of `weights`.

    With the adjacency matrix of a network this is the local order parameter at each node.

    Shapes: theta [..., N], weights [M, N] (non-negative, no empty row) -> two of [..., M].
    """
    share = (weights / mx.sum(weights, axis=-1, keepdims=True)).T
    cos, sin = unit_vector(theta)
    return cos @ share, sin @ share


def group_order(theta: mx.array, labels: mx.array, groups: int) -> Pair:
    """Z of each group. Shapes: theta [..., N], labels int [N] in 0..groups-1 -> two of [..., groups]."""
    members = labels[None, :] == mx.arange(groups)[:, None]
    return local_order(theta, members.astype(theta.dtype))


def vector_coherence(x: mx.array) -> mx.array:
    """R = |mean x_j| of unit vectors on a sphere. Shapes: x [..., N, D] -> [...]."""
    return mx.linalg.norm(mx.mean(x, axis=-2), axis=-1)
