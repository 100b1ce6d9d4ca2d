"""Mamba-2's scan by the kernels of the selective scan: P channels per head share a step and a decay.

No kernel of its own: the decay is computed for every channel and state instead of once per head. The compiled
form, which is matrix products, stays the default (`dispatch.COMPILED_BY_DEFAULT`).
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops.kernels.selective_scan import grouped_scan


def ssd(x, dt, A, B, C, state=None, *, resets=None, lengths=None) -> tuple[mx.array, mx.array]:
    """Shapes as in `ops.ssd`."""
    rows, T, H, P = x.shape
    N = B.shape[-1]
    step = mx.repeat(dt, P, axis=2)
    rate = mx.broadcast_to(mx.repeat(A, P)[:, None], (H * P, N))
    start = None if state is None else state.reshape(rows, H * P, N)
    y, h = grouped_scan(x.reshape(rows, T, H * P), step, rate, B, C, start, resets, lengths)
    return y.reshape(x.shape), h.reshape(rows, H, P, N)
