"""The selective scan of Mamba (S6): a diagonal state-space model whose step and projections see the token.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t,    y_t = C_t h_t        (one state h [N] for each channel)

Source: Gu & Dao 2023, "Mamba", algorithm 2, with the simplified discretisation of its section 3.6.
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import dispatch
from kssm_mlx.ops.scan import begins, float32, inside, linear_scan


def selective_scan_reference(x, dt, A, B, C, state=None, *, resets=None, lengths=None):
    """The recurrence as on paper. Shapes as in `selective_scan`."""
    x, dt, A, B, C = float32(x, dt, A, B, C)
    batch, T, _ = x.shape
    h = mx.zeros((batch, *A.shape)) if state is None else state
    y = []
    for t in range(T):
        start = h if resets is None else mx.where(resets[:, t, None, None], 0, h)
        decay = mx.exp(dt[:, t, :, None] * A)
        new = decay * start + (dt[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        h = new if lengths is None else mx.where((t < lengths)[:, None, None], new, h)
        y.append((new * C[:, t, None, :]).sum(-1))
    return mx.stack(y, axis=1), h


def selective_scan(
    x: mx.array,
    dt: mx.array,
    A: mx.array,
    B: mx.array,
    C: mx.array,
    state: mx.array | None = None,
    *,
    resets: mx.array | None = None,
    lengths: mx.array | None = None,
    impl: str = "auto",
) -> tuple[mx.array, mx.array]:
    """The scan with everything but the recurrence itself hoisted out of the loop over time.

    Shapes: x, dt [B, T, D] with dt > 0; A [D, N] < 0; B, C [B, T, N]; state [B, D, N], zeros when None;
        resets [B, T] bool; lengths [B] int. Returns y [B, T, D] and the state [B, D, N], both fp32.
    """
    if kernel := dispatch.kernel("selective_scan", impl):
        return kernel(x, dt, A, B, C, state, resets=resets, lengths=lengths)
    x, dt, A, B, C = float32(x, dt, A, B, C)
    if lengths is not None:
        dt = mx.where(inside(lengths, x.shape[1])[..., None], dt, 0)
    # Time first, channels last: the loop then runs over long contiguous rows.
    x, dt, B, C = (v.swapaxes(0, 1) for v in (x, dt, B, C))
    a = mx.exp(dt[:, :, None, :] * A.T)
    b = B[..., None] * (dt * x)[:, :, None, :]
    if resets is not None:
        a = mx.where(begins(resets, lengths).T[:, :, None, None], 0, a)
    h0 = mx.zeros(b.shape[1:]) if state is None else state.swapaxes(1, 2)
    h = linear_scan(a, b, h0)
    y = (C[:, :, None, :] @ h).squeeze(2)
    return y.swapaxes(0, 1), h[-1].swapaxes(1, 2)
