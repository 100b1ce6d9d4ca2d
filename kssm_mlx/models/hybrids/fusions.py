"""How two branches become one: the fusions of a parallel block, R from RWKV and M from Mamba.

    hy       g_R norm(R) + g_M norm(M)                       gains per channel
    fixed    q R + (1 - q) M                                 q a constant
    ws       the same                                        q learned, one per block
    gf       the same, q_t = σ(w [R; M] + c)                 one per token
    hgf      the same                                        one per token and channel
    gru      the same, q_t = σ(w h_t + c)                    h a GRU over [R; M], token by token
    mingru   the same, h_t = (1 - p_t) h_{t-1} + p_t c_t     p, c from [norm R; norm M]: a scan
    cp       P [R; M]
    rf       R + P M                                         P small

`share` is the q to start with, and a gate starts with w = 0 and c = logit(share): it is what was asked for,
however large R and M are. A gate's weights over two branches as a softmax are this sigmoid of a difference.
All are called `fusion(R, M, state, resets, lengths) -> y, state, q`, state a list of [B, width] for those
that remember (`slots`), q the share of R where there is one: [], [D], [B, T, 1] or [B, T, D].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.layers import RMSNorm, linear
from kssm_mlx.ops.elementary import sigmoid
from kssm_mlx.ops.scan import linear_scan, mask_resets, mask_tokens, tree_split

EPS = 1e-6


class Fusion(nn.Module):
    """The interface, and q R + (1 - q) M."""

    slots: tuple[str, ...] = ()

    @staticmethod
    def blend(r: mx.array, m: mx.array, q: mx.array | float) -> mx.array:
        return q * r + (1 - q) * m


class Normed(Fusion):
    """hy: both branches at unit RMS, then one gain per channel each."""

    def __init__(self, key: mx.array, D: int, share: float):
        super().__init__()
        self.norm_rwkv, self.norm_mamba = RMSNorm(D, EPS), RMSNorm(D, EPS)
        self.gain_rwkv, self.gain_mamba = mx.full((D,), share), mx.full((D,), 1 - share)

    def __call__(self, r, m, state, resets, lengths):
        y = self.gain_rwkv * self.norm_rwkv(r) + self.gain_mamba * self.norm_mamba(m)
        sizes = mx.abs(self.gain_rwkv), mx.abs(self.gain_mamba)
        return y, state, sizes[0] / (sizes[0] + sizes[1])


class Fixed(Fusion):
    """fixed: a constant q."""

    def __init__(self, key: mx.array, D: int, share: float):
        super().__init__()
        self._share = share

    def __call__(self, r, m, state, resets, lengths):
        return self.blend(r, m, self._share), state, mx.array(self._share)


class Weighted(Fusion):
    """ws: one learned q for the block."""

    def __init__(self, key: mx.array, D: int, share: float):
        super().__init__()
        self.share = mx.array(share)

    def __call__(self, r, m, state, resets, lengths):
        return self.blend(r, m, self.share), state, self.share


class Gated(Fusion):
    """gf: one q per token."""

    def __init__(self, key: mx.array, D: int, share: float, gates: int = 1):
        super().__init__()
        self.gate = gate(2 * D, gates, share)

    def __call__(self, r, m, state, resets, lengths):
        q = sigmoid(self.gate(mx.concatenate([r, m], axis=-1)))
        return self.blend(r, m, q), state, q


class ChannelGated(Gated):
    """hgf: one q per token and channel."""

    def __init__(self, key: mx.array, D: int, share: float):
        super().__init__(key, D, share, gates=D)


class Projected(Fusion):
    """cp: any linear map of both."""

    def __init__(self, key: mx.array, D: int, share: float):
        super().__init__()
        self.project = linear(key, 2 * D, D)

    def __call__(self, r, m, state, resets, lengths):
        return self.project(mx.concatenate([r, m], axis=-1)), state, None


class Residual(Fusion):
    """rf: R, and a little of M."""

    def __init__(self, key: mx.array, D: int, share: float):
        super().__init__()
        self.project = linear(key, D, D, std=0.01)

    def __call__(self, r, m, state, resets, lengths):
        return r + self.project(m), state, None


class Recurrent(Fusion):
    """gru: an arbiter that remembers, h_t = (1 - z) n + z h_{t-1}, z and n as in Cho et al. 2014."""

    slots = ("arbiter",)

    def __init__(self, key: mx.array, D: int, share: float):
        super().__init__()
        k_in, k_state = mx.random.split(key)
        self.inputs = linear(k_in, 2 * D, 3 * D, bias=True)
        self.recurrent = linear(k_state, D, 3 * D, bias=True)
        self.gate = gate(D, 1, share)

    def __call__(self, r, m, state, resets, lengths):
        drive = self.inputs(mx.concatenate([r, m], axis=-1)).swapaxes(0, 1)
        h = mx.zeros((1, *r.shape[::2])) if state[0] is None else state[0][None]
        states = []
        for t, x in enumerate(tree_split(drive)):
            start = h if resets is None else mx.where(resets[None, :, t, None], 0, h)
            new = self._step(x, start)
            # A row that is over keeps its state; what is computed in its padding is not read.
            h = new if lengths is None else mx.where((t < lengths)[:, None], new, h)
            states.append(new)
        q = sigmoid(self.gate(mx.concatenate(states).swapaxes(0, 1)))
        return self.blend(r, m, q), [h[0]], q

    def _step(self, x: mx.array, h: mx.array) -> mx.array:
        x_reset, x_keep, x_new = mx.split(x, 3, axis=-1)
        h_reset, h_keep, h_new = mx.split(self.recurrent(h), 3, axis=-1)
        new = mx.tanh(x_new + sigmoid(x_reset + h_reset) * h_new)
        keep = sigmoid(x_keep + h_keep)
        return (1 - keep) * new + keep * h


class MinimalRecurrent(Fusion):
    """mingru: an arbiter whose gates do not read its state, so that all tokens are one scan.

    Source: Feng et al. 2024, "Were RNNs all we needed?", appendix B (candidates positive, as there).
    """

    slots = ("arbiter",)

    def __init__(self, key: mx.array, D: int, share: float):
        super().__init__()
        width = 3 * D // 2
        self.norm_rwkv, self.norm_mamba = RMSNorm(D, EPS), RMSNorm(D, EPS)
        self.inputs = linear(key, 2 * D, 2 * width)
        self.gate = gate(width, 1, share)

    def __call__(self, r, m, state, resets, lengths):
        both = mx.concatenate([self.norm_rwkv(r), self.norm_mamba(m)], axis=-1)
        c, p = mx.split(self.inputs(both).astype(mx.float32), 2, axis=-1)
        p = sigmoid(p)
        keep, added = 1 - p, p * mx.where(c >= 0, c + 0.5, sigmoid(c))
        # Keep everything and add nothing: a state passes through padding as it is.
        if lengths is not None:
            valid = mask_tokens(lengths, r.shape[1])[..., None]
            keep, added = mx.where(valid, keep, 1), mx.where(valid, added, 0)
        if resets is not None:
            keep = mx.where(mask_resets(resets, lengths)[..., None], 0, keep)
        h0 = mx.zeros_like(added[:, 0]) if state[0] is None else state[0]
        h = linear_scan(keep.swapaxes(0, 1), added.swapaxes(0, 1), h0)
        q = sigmoid(self.gate(h.swapaxes(0, 1).astype(r.dtype)))
        return self.blend(r, m, q), [h[-1]], q


def gate(inputs: int, outputs: int, share: float) -> nn.Linear:
    """A map whose sigmoid is `share` until it has learned better."""
    layer = nn.Linear(inputs, outputs)
    layer.weight = mx.zeros((outputs, inputs))
    layer.bias = mx.full((outputs,), math.log(share / (1 - share)))
    return layer


FUSIONS: dict[str, Callable[..., Fusion]] = {
    "hy": Normed,
    "fixed": Fixed,
    "ws": Weighted,
    "gf": Gated,
    "hgf": ChannelGated,
    "cp": Projected,
    "rf": Residual,
    "gru": Recurrent,
    "mingru": MinimalRecurrent,
}
