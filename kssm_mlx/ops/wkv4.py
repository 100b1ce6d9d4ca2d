"""The WKV of RWKV-4: an exponentially decaying average of values, weighted by exp(key), one per channel.

    y_t = (num_{t-1} + e^{u + k_t} v_t) / (den_{t-1} + e^{u + k_t})
    num_t = e^w num_{t-1} + e^{k_t} v_t,    den_t = e^w den_{t-1} + e^{k_t}         (w < 0)

num and den are kept as multiples of e^max, so that no exponential overflows. Any stabiliser gives the same y,
so the running maximum takes no part in the gradient.

Source: Peng et al. 2023, "RWKV", equations 16 and 24-28 (appendix on numerical stability).
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from kssm_mlx.ops import dispatch
from kssm_mlx.ops.elementary import exp
from kssm_mlx.ops.scan import float32, linear_scan, mask_resets, mask_tokens, max_plus_scan, shift_states

# Not -inf: where two empty sums meet, -inf less -inf is NaN. exp makes 0 of either.
EMPTY = -1e38


class WKV4State(NamedTuple):
    """num e^max and den e^max are the sums. Shapes: [B, C] each."""

    num: mx.array
    den: mx.array
    max: mx.array


def empty_state(B: int, C: int) -> WKV4State:
    """No token seen: both sums are zero."""
    return WKV4State(mx.zeros((B, C)), mx.zeros((B, C)), mx.full((B, C), EMPTY))


def wkv4_reference(w, u, k, v, state=None, *, resets=None, lengths=None):
    """The recurrence as on paper. Shapes as in `wkv4`."""
    w, u, k, v = float32(w, u, k, v)
    B, T, C = k.shape
    empty = empty_state(B, C)
    s, y = empty if state is None else WKV4State(*state), []
    for t in range(T):
        kt, vt = k[:, t], v[:, t]
        past = s if resets is None else _choose(resets[:, t, None], empty, s)
        q = mx.maximum(past.max, u + kt)
        old, now = mx.exp(past.max - q), mx.exp((kt - q) + u)
        y.append((old * past.num + now * vt) / (old * past.den + now))
        m = mx.maximum(past.max + w, kt)
        # The maximum may be so large that a decay added to it is rounded away.
        old, now = mx.exp((past.max - m) + w), mx.exp(kt - m)
        new = WKV4State(old * past.num + now * vt, old * past.den + now, m)
        s = new if lengths is None else _choose((t < lengths)[:, None], new, s)
    return mx.stack(y, axis=1), s


def _choose(where: mx.array, one: WKV4State, other: WKV4State) -> WKV4State:
    return WKV4State(*(mx.where(where, x, y) for x, y in zip(one, other)))


@dispatch.with_fallback
def wkv4(
    w: mx.array,
    u: mx.array,
    k: mx.array,
    v: mx.array,
    state: WKV4State | None = None,
    *,
    resets: mx.array | None = None,
    lengths: mx.array | None = None,
    impl: str = "auto",
) -> tuple[mx.array, WKV4State]:
    """The stabiliser first, by a max-plus scan; then num and den in one linear scan.

    Shapes: w, u [C], w < 0; k, v [B, T, C]; state [B, C] each, empty when None; resets [B, T] bool;
        lengths [B] int. Returns y [B, T, C] and the state, fp32.
    Raises: ConfigError for an `impl` that cannot run here (see `dispatch`).
    """
    if kernel := dispatch.kernel("wkv4", impl, k):
        return kernel(w, u, k, v, state, resets=resets, lengths=lengths)
    if k.shape[1] == 1:
        return wkv4_reference(w, u, k, v, state, resets=resets, lengths=lengths)
    w, u, k, v = float32(w, u, k, v)
    B, _, C = k.shape
    state = empty_state(B, C) if state is None else WKV4State(*float32(*state))
    k, v = k.swapaxes(0, 1), v.swapaxes(0, 1)
    step, key = _mask_inputs(mx.broadcast_to(w, k.shape), k, resets, lengths)

    # m is the running maximum of the exponents; with it every factor below is at most 1.
    m = max_plus_scan(step, key, state.max)
    m_past = shift_states(m, state.max)
    decay, weight = exp((m_past - m) + step), exp(key - m)
    sums0 = mx.stack([state.num, state.den])
    sums = linear_scan(mx.stack([decay, decay], axis=1), mx.stack([weight * v, weight], axis=1), sums0)

    num, den = shift_states(sums, sums0).swapaxes(0, 1)
    if resets is not None:
        m_past = mx.where(resets.T[..., None], EMPTY, m_past)
    # The stabiliser cancels in the quotient: its gradient would be rounding alone.
    q = mx.stop_gradient(mx.maximum(m_past, u + k))
    old, now = exp(m_past - q), exp((k - q) + u)
    y = (old * num + now * v) / (old * den + now)
    return y.swapaxes(0, 1), WKV4State(sums[-1, 0], sums[-1, 1], m[-1])


def _mask_inputs(w: mx.array, k: mx.array, resets, lengths) -> tuple[mx.array, mx.array]:
    """A reset leaves nothing of the past; padding has no decay and no weight. Shapes: w, k [T, B, C]."""
    if lengths is not None:
        valid = mask_tokens(lengths, k.shape[0]).T[..., None]
        w, k = mx.where(valid, w, 0), mx.where(valid, k, -mx.inf)
    if resets is not None:
        w = mx.where(mask_resets(resets, lengths).T[..., None], -mx.inf, w)
    return w, k
