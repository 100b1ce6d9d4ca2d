"""The bank of oscillators that K-SSM v1, v2 and v3 have in every block, as functions of one token's phases.

theta = omega + drive, one Euler step of size 1 of the Kuramoto mean field, and moments Z_n = mean exp(i n
theta) over the oscillators. Every mean here is over oscillators, none over time.
"""

from __future__ import annotations

import math

import mlx.core as mx

from kssm_mlx.models.base import Clamp, mask_clamped
from kssm_mlx.oscillators.kuramoto import mean_field, velocity
from kssm_mlx.oscillators.order import Pair, modulus, unit_vector


def evenly_spread(N: int) -> mx.array:
    """Natural frequencies from -pi to pi, both ends included. Shapes: [N]."""
    return mx.linspace(-math.pi, math.pi, N)


def pull_together(theta: mx.array, K: float | mx.array) -> mx.array:
    """theta + K R sin(psi - theta). Shapes: theta [..., N], K [..., 1] -> [..., N]."""
    unit = unit_vector(theta)
    return theta + velocity(*unit, 0.0, mean_field(*unit, K))


def bank_step(theta: mx.array, omega: mx.array, K: mx.array, dt: mx.array) -> mx.array:
    """What a bank does to phases in a step of `dt`; its own is one of dt = 1, from 0, drive and omega as one.

    Shapes: theta, omega [..., N], K [..., 1].
    """
    return pull_together(theta + dt * omega, dt * K)


def hold_coherence(moments: Pair, clamps: tuple[Clamp, ...]) -> Pair:
    """Moments of which the first has the modulus that clamps on "R" ask for; its angle stays its own.

    Shapes: two of [B, T, M].
    """
    x, y = moments
    for clamp in (c for c in clamps if c.site == "R"):
        where, psi = mask_clamped(clamp, 0, x.shape[1], 1), mx.arctan2(y[..., :1], x[..., :1])
        R = mx.array(clamp.value, x.dtype)
        x = mx.concatenate([mx.where(where, R * mx.cos(psi), x[..., :1]), x[..., 1:]], axis=-1)
        y = mx.concatenate([mx.where(where, R * mx.sin(psi), y[..., :1]), y[..., 1:]], axis=-1)
    return x, y


def observe_bank(theta: mx.array, x: mx.array, y: mx.array) -> dict[str, mx.array]:
    """What a trace says of a bank whose first moment is x + i y. Shapes: theta [B, T, N]; x, y [B, T, 1]."""
    return {"R": modulus(x, y), "psi": mx.arctan2(y, x), "theta": theta}
