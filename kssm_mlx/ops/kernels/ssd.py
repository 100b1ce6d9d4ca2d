"""Mamba-2's scan by the kernels of the selective scan: P channels per head share a step and a decay.

No kernel of its own: the decay is computed for every channel and state instead of once per head. The compiled
form, which is matrix products, stays the default (`dispatch.COMPILED_BY_DEFAULT`).
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import ssd as compiled
from kssm_mlx.ops.kernels.selective_scan import call, grouped_scan
from kssm_mlx.ops.proof import IN_PARTS, SIZES, Case, normal


def ssd(x, dt, A, B, C, state=None, *, resets=None, lengths=None) -> tuple[mx.array, mx.array]:
    """Shapes as in `ops.ssd`."""
    rows, T, H, P = x.shape
    N = B.shape[-1]
    # In fp32, so that what the channels of a head give back to its step is summed before it is rounded.
    step = mx.repeat(dt.astype(mx.float32), P, axis=2).astype(dt.dtype)
    rate = mx.broadcast_to(mx.repeat(A, P)[:, None], (H * P, N))
    start = None if state is None else state.reshape(rows, H * P, N)
    y, h = grouped_scan(x.reshape(rows, T, H * P), step, rate, B, C, start, resets, lengths)
    return y.reshape(x.shape), h.reshape(rows, H, P, N)


def _arguments(B, T, P, H=4, G=2, N=5):
    tokens = [normal(0, B, T, H, P), 0.3 * mx.abs(normal(1, B, T, H))]
    shared = [normal(2, B, T, G, N), normal(3, B, T, G, N)]
    return [*tokens, *shared, -mx.abs(normal(4, H)), normal(5, B, H, P, N)]


CASE = Case(compiled.ssd, _arguments, 4, call, compiled.ssd_reference, sizes=(*SIZES, IN_PARTS))
