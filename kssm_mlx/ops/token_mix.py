"""RWKV's token shift: every input mixed with the one before it, in several proportions at once.

y_c = x_t + (x_{t-1} - x_t) mu_c          (0 in place of x_{t-1} where a document begins)
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import dispatch


@dispatch.with_fallback
def token_mix(
    x: mx.array,
    mu: mx.array,
    state: mx.array | None = None,
    *,
    resets: mx.array | None = None,
    lengths: mx.array | None = None,
    impl: str = "auto",
) -> tuple[list[mx.array], mx.array]:
    """All mixes, and the last valid input of each row, which the next call takes as `state`.

    Shapes: x [B, T, D]; mu [C, D]; state [B, D], zeros when None; resets [B, T] bool; lengths [B] int.
        Returns C arrays [B, T, D] and the state [B, D].
    Raises: ConfigError for an `impl` that cannot run here (see `dispatch`).
    """
    past = mx.zeros((x.shape[0], x.shape[2]), x.dtype) if state is None else state.astype(x.dtype)
    kernel = dispatch.kernel("token_mix", impl, x, C=len(mu))
    last = x[:, -1] if lengths is None else _last_input(x, past, lengths)
    if kernel:
        return kernel(x, mu, past, resets), last
    before = mx.concatenate([past[:, None], x[:, :-1]], axis=1)
    if resets is not None:
        before = mx.where(resets[..., None], 0, before)
    change = before - x
    return [x + change * row.astype(x.dtype) for row in mu], last


def _last_input(x: mx.array, past: mx.array, lengths: mx.array) -> mx.array:
    """The input of the last valid token; the state where a row has none."""
    read = mx.take_along_axis(x, mx.maximum(lengths - 1, 0)[:, None, None], axis=1).squeeze(1)
    return mx.where((lengths > 0)[:, None], read, past)
