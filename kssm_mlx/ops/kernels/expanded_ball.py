"""The expanded scan on spheres as kernels."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import expanded_ball as compiled
from kssm_mlx.ops.gpu import streams
from kssm_mlx.ops.kernels.expanded import declare, differentiable, mark_tokens
from kssm_mlx.ops.kernels.expanded_scan import call
from kssm_mlx.ops.proof import SIZES, Case, normal

FORWARD, ADJOINT, GRADIENTS = declare("expanded_ball", "a", "B C spin", "gamma omega kappa start")
_scan = differentiable(FORWARD, ADJOINT, GRADIENTS, shared=3)


def expanded_ball(x, dt, B, C, spin, gamma, omega, kappa, start, state, *, resets=None, lengths=None):
    """Shapes as in `ops.expanded_ball`."""
    rows, T, _ = x.shape
    rates = [v.astype(mx.float32).swapaxes(-1, -2) for v in (gamma, omega, kappa, start)]
    a0 = mx.broadcast_to(rates[3], (rows, *rates[3].shape))
    if state is not None:
        a0 = state.astype(mx.float32).swapaxes(2, 3)
    y, power, a, _ = _scan(a0, *streams(x, dt, B, C, spin), *rates, mark_tokens(resets, lengths, rows, T))
    return y, power, a.swapaxes(2, 3)


def _arguments(B, T, D, N=3):
    shared = [normal(i, B, T, 3, N) for i in (2, 3, 4)]
    tokens = [normal(0, B, T, D), 0.3 * mx.abs(normal(1, B, T, D)), *shared]
    rates = [0.05 + mx.abs(normal(5, D, N)), normal(6, 3, D, N), mx.abs(normal(7, D, N))]
    # In the ball whose radius is kappa^(-1/2).
    start, state = (
        0.5 * mx.tanh(normal(i, *own, 3, D, N)) * mx.rsqrt(mx.maximum(rates[2], 1))
        for i, own in ((8, ()), (9, (B,)))
    )
    return [*tokens, *rates, start, state]


CASE = Case(compiled.expanded_ball, _arguments, 5, call, compiled.expanded_ball_reference, sizes=SIZES)
