"""The WKV of RWKV-7: a matrix state per head under the generalised delta rule.

    S_t = S_{t-1} (diag(w_t) + a_t b_tᵀ) + v_t k_tᵀ,    y_t = S_t r_t      (S [V, K] per head, 0 < w < 1)

In a chunk the decay is divided out: with W_t = w_1 ... w_t and S_t = Z_t diag(W_t) the recurrence is a plain
delta rule, Z_t = Z_{t-1} + u_t (b_t / W_t)ᵀ + v_t (k_t / W_t)ᵀ with u_t = Z_{t-1} (W_{t-1} a_t): one
triangular system for all u of the chunk.

Source: Peng et al. 2025, "RWKV-7 Goose", equations 17-19; Yang et al. 2024, "Parallelizing linear
transformers with the delta rule", section 3 (the UT transform).
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import custom_function, dispatch
from kssm_mlx.ops.elementary import exp
from kssm_mlx.ops.scan import (
    documents,
    float32,
    from_chunks,
    in_chunks,
    mask_resets,
    mask_tokens,
    matrix_scan,
    shift_states,
)


def wkv7_reference(r, log_w, k, v, a, b, state=None, *, resets=None, lengths=None):
    """The recurrence as on paper. Shapes as in `wkv7`."""
    r, log_w, k, v, a, b = float32(r, log_w, k, v, a, b)
    B, T, H, K = r.shape
    S = mx.zeros((B, H, v.shape[-1], K)) if state is None else state
    y = []
    for t in range(T):
        start = S if resets is None else mx.where(resets[:, t, None, None, None], 0, S)
        rows = [x[:, t, :, None, :] for x in (mx.exp(log_w), k, b)]
        columns = [x[:, t, :, :, None] for x in (r, v, a)]
        (w_t, k_t, b_t), (r_t, v_t, a_t) = rows, columns
        new = start * w_t + (start @ a_t) @ b_t + v_t @ k_t
        S = new if lengths is None else mx.where((t < lengths)[:, None, None, None], new, S)
        y.append((new @ r_t).squeeze(-1))
    return mx.stack(y, axis=1), S


@dispatch.with_fallback
def wkv7(
    r: mx.array,
    log_w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    state: mx.array | None = None,
    *,
    resets: mx.array | None = None,
    lengths: mx.array | None = None,
    chunk: int = 16,
    impl: str = "auto",
) -> tuple[mx.array, mx.array]:
    """The chunked form: all chunks side by side, then one matrix recurrence from chunk to chunk.

    chunk: 1/W grows to e^{0.6065 chunk} in RWKV-7, where log_w > -0.6065: 16 is far from overflow.

    Shapes: r, log_w, k, a, b [B, T, H, K]; v [B, T, H, V]; log_w < 0; state [B, H, V, K], zeros when None;
        resets [B, T] bool; lengths [B] int. Returns y [B, T, H, V] and the state [B, H, V, K], both fp32.
    Raises: ConfigError for an `impl` that cannot run here (see `dispatch`).
    """
    if kernel := dispatch.kernel("wkv7", impl, r, K=r.shape[-1]):
        return kernel(r, log_w, k, v, a, b, state, resets=resets, lengths=lengths)
    if r.shape[1] == 1:
        return wkv7_reference(r, log_w, k, v, a, b, state, resets=resets, lengths=lengths)
    r, log_w, k, v, a, b = float32(r, log_w, k, v, a, b)
    B, T, H, K = r.shape
    L = min(chunk, T)
    if lengths is not None:
        valid = mask_tokens(lengths, T)[..., None, None]
        # Decay 1 and nothing written leave the state alone; what padding reads out is nobody's.
        log_w, k, b = (mx.where(valid, x, 0) for x in (log_w, k, b))
    if resets is not None:
        resets = in_chunks(mask_resets(resets, lengths), L)
    S0 = mx.zeros((B, H, v.shape[-1], K)) if state is None else state
    r, log_w, k, v, a, b = (in_chunks(x, L) for x in (r, log_w, k, v, a, b))
    y, S = _chunks(r, log_w, k, v, a, b, S0, *documents(resets, L))
    return from_chunks(y, T), S


def _chunks(r, log_w, k, v, a, b, S0, causal, entered, leaves) -> tuple[mx.array, mx.array]:
    """The outputs of all chunks and the last state; the masks are those of `scan.documents`.

    Shapes: r, log_w, k, a, b [C, B, H, L, K]; v [C, B, H, L, V]; S0 [B, H, V, K].
    """
    entered, leaves = entered[..., None], leaves[..., None]
    # A token removes from the state before its own write, so its own column is not among what it removes.
    strictly = causal & ~mx.eye(r.shape[-2], dtype=mx.bool_)

    # Decays relative to the start of the chunk: targets carry W, sources 1/W, the end W_L/W.
    log_W = mx.cumsum(log_w, axis=-2)
    # r reads the state behind the token's decay, a the one before it: one decay less.
    r, a = r * exp(log_W), a * exp(log_W - log_w)
    b_in, k_in = b * exp(-log_W), k * exp(-log_W)
    to_end = mx.where(leaves, exp(log_W[..., -1:, :] - log_W), 0)
    b_end, k_end = b * to_end, k * to_end
    r0, a0 = mx.where(entered, r, 0), mx.where(entered, a, 0)

    # u = solve (a0 S0ᵀ + M_ak v): the part that needs the entering state, and the part that does not.
    solve = unit_lower_inverse(mx.where(strictly, a @ _T(b_in), 0))
    u_state, u_own = solve @ a0, solve @ (mx.where(strictly, a @ _T(k_in), 0) @ v)
    # The state that enters a chunk reaches its end by its decay and through every removal in between.
    carry = _T(u_state) @ b_end + _diagonal(mx.where(entered, exp(log_W), 0)[..., -1, :])
    added = _T(u_own) @ b_end + _T(v) @ k_end
    S = matrix_scan(carry, added, S0)

    M_rb, M_rk = mx.where(causal, r @ _T(b_in), 0), mx.where(causal, r @ _T(k_in), 0)
    y = (r0 + M_rb @ u_state) @ _T(shift_states(S, S0)) + M_rb @ u_own + M_rk @ v
    return y, S[-1]


@custom_function
def unit_lower_inverse(M: mx.array) -> mx.array:
    """(I - M)^-1 of strictly lower triangular M, by doubling the size of inverted diagonal blocks.

    A power series would do in fewer lines, but for repeated keys its terms cancel and lose four digits.

    Shapes: [..., L, L].
    """
    L = M.shape[-1]
    if L == 1:
        return mx.ones_like(M)
    h = L // 2
    upper, lower = unit_lower_inverse(M[..., :h, :h]), unit_lower_inverse(M[..., h:, h:])
    corner = lower @ M[..., h:, :h] @ upper
    top = mx.concatenate([upper, mx.zeros((*M.shape[:-2], h, L - h), M.dtype)], axis=-1)
    return mx.concatenate([top, mx.concatenate([corner, lower], axis=-1)], axis=-2)


@unit_lower_inverse.vjp
def _(primals, cotangent, X):
    return _T(X) @ cotangent @ _T(X)


def _T(x: mx.array) -> mx.array:
    return x.swapaxes(-1, -2)


def _diagonal(x: mx.array) -> mx.array:
    return x[..., None] * mx.eye(x.shape[-1], dtype=x.dtype)
