"""The expanded scan of phases as kernels."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import expanded_scan as compiled
from kssm_mlx.ops.gpu import streams
from kssm_mlx.ops.kernels.expanded import declare, differentiable, mark_tokens
from kssm_mlx.ops.proof import SIZES, Case, normal, valid

FORWARD, ADJOINT, GRADIENTS = declare("expanded_scan", "z", "B C", "gamma omega kappa")
_scan = differentiable(FORWARD, ADJOINT, GRADIENTS, shared=2)


def expanded_scan(x, dt, B, C, gamma, omega, kappa, state, *, resets=None, lengths=None):
    """Shapes as in `ops.expanded_scan`."""
    rows, T, D = x.shape
    N = gamma.shape[1]
    z0 = mx.zeros((rows, 2, N, D)) if state is None else state.astype(mx.float32).swapaxes(2, 3)
    rates = (v.astype(mx.float32).T for v in (gamma, omega, kappa))
    y, power, z, _ = _scan(z0, *streams(x, dt, B, C), *rates, mark_tokens(resets, lengths, rows, T))
    return y, power, z.swapaxes(2, 3)


def _arguments(B, T, D, N=3):
    tokens = [normal(0, B, T, D), 0.3 * mx.abs(normal(1, B, T, D)), normal(2, B, T, 2, N)]
    rates = [0.05 + mx.abs(normal(4, D, N)), normal(5, D, N), mx.abs(normal(6, D, N))]
    # In the disc whose radius is kappa^(-1/2).
    state = 0.6 * mx.tanh(normal(7, B, 2, D, N)) * mx.rsqrt(mx.maximum(rates[2], 1))
    return [*tokens, normal(3, B, T, 2, N), *rates, state]


def call(op, x, masks):
    """Of the arrays that are read per token, of the rates and the state."""
    y, power, state = op(*x, **masks)
    return [valid(y, masks), valid(power, masks), state]


CASE = Case(compiled.expanded_scan, _arguments, 4, call, compiled.expanded_scan_reference, sizes=SIZES)
