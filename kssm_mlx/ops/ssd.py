"""State-space duality, the scan of Mamba-2: one decay per head, so a chunk of tokens is a few matmuls.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t B_tᵀ,    y_t = h_t C_t    (h [P, N] per head; B, C shared in a group)

Source: Dao & Gu 2024, "Transformers are SSMs", section 6 and listing 1: the four steps below.
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import dispatch
from kssm_mlx.ops.elementary import exp
from kssm_mlx.ops.scan import (
    documents,
    float32,
    from_chunks,
    in_chunks,
    linear_scan,
    mask_resets,
    mask_tokens,
    shift_states,
)


def ssd_reference(x, dt, A, B, C, state=None, *, resets=None, lengths=None):
    """The recurrence as on paper. Shapes as in `ssd`."""
    x, dt, A, B, C = float32(x, dt, A, B, C)
    batch, T, H, P = x.shape
    B, C = (mx.repeat(v, H // v.shape[2], axis=2) for v in (B, C))
    h = mx.zeros((batch, H, P, B.shape[-1])) if state is None else state
    y = []
    for t in range(T):
        start = h if resets is None else mx.where(resets[:, t, None, None, None], 0, h)
        decay = mx.exp(dt[:, t] * A)[..., None, None]
        new = decay * start + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        h = new if lengths is None else mx.where((t < lengths)[:, None, None, None], new, h)
        y.append((new @ C[:, t, :, :, None]).squeeze(-1))
    return mx.stack(y, axis=1), h


@dispatch.with_fallback
def ssd(
    x: mx.array,
    dt: mx.array,
    A: mx.array,
    B: mx.array,
    C: mx.array,
    state: mx.array | None = None,
    *,
    resets: mx.array | None = None,
    lengths: mx.array | None = None,
    chunk: int = 64,
    impl: str = "auto",
) -> tuple[mx.array, mx.array]:
    """The chunked scan: quadratic inside a chunk, recurrent between chunks.

    Shapes: x [B, T, H, P]; dt [B, T, H] > 0; A [H] < 0; B, C [B, T, G, N], H a multiple of G;
        state [B, H, P, N], zeros when None; resets [B, T] bool; lengths [B] int.
        Returns y [B, T, H, P] and the state [B, H, P, N], both fp32.
    Raises: ConfigError for an `impl` that cannot run here (see `dispatch`).
    """
    if kernel := dispatch.kernel("ssd", impl, x):
        return kernel(x, dt, A, B, C, state, resets=resets, lengths=lengths)
    # A token alone shares no work with others: this is a step of generation.
    if x.shape[1] == 1:
        return ssd_reference(x, dt, A, B, C, state, resets=resets, lengths=lengths)
    x, dt, A, B, C = float32(x, dt, A, B, C)
    batch, T, H, P = x.shape
    N, L = B.shape[-1], min(chunk, T)
    # Padding lasts no time: its decay is 1 and it adds nothing.
    if lengths is not None:
        dt = mx.where(mask_tokens(lengths, T)[..., None], dt, 0)
    if resets is not None:
        resets = in_chunks(mask_resets(resets, lengths), L)
    causal, entered, leaves = documents(resets, L)
    dtx = in_chunks(dt[..., None] * x, L)
    log_decay = mx.cumsum(in_chunks(dt * A, L), axis=-1)
    B, C = (mx.repeat(in_chunks(v, L), H // v.shape[2], axis=2) for v in (B, C))

    # 1. Inside a chunk: attention with the decay from source j to target i as its mask.
    # -inf before exp, not 0 behind it: above the diagonal exp overflows, and inf times 0 is a NaN gradient.
    decay = exp(mx.where(causal, log_decay[..., :, None] - log_decay[..., None, :], -mx.inf))
    y = ((C @ B.swapaxes(-1, -2)) * decay) @ dtx
    # 2. What each chunk adds to the state.
    to_end = mx.where(leaves, exp(log_decay[..., -1:] - log_decay), 0)
    added = dtx.swapaxes(-1, -2) @ (B * to_end[..., None])
    # 3. The state that enters each chunk.
    whole = mx.where(entered, exp(log_decay), 0)
    h0 = mx.zeros((batch, H, P, N)) if state is None else state
    carry = mx.broadcast_to(whole[..., -1, None, None], added.shape)
    h = linear_scan(carry, added, h0)
    # 4. What the entering state contributes to each token.
    y = y + whole[..., None] * (C @ shift_states(h, h0).swapaxes(-1, -2))
    return from_chunks(y, T), h[-1]
