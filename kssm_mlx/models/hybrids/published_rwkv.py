"""The RWKV branch that GroundThink published (legacy): static decays, a block inside the branch.

    u = ln1 n;  r, k, v = W_r u, W_k u, W_v u
    S_t = S_{t-1} diag(λ) + v_t k_tᵀ,   o_t = (S_{t-1} + v_t (u ⊙ k_t)ᵀ) r_t,   λ = exp(-e^w) per channel
    a = n + W_o (σ(r) o);   R = a + W_v' relu(W_k' ln2 a)²

Two thirds of its parameters are the feed-forward, and n itself is part of its output: beside a pure mixer it
is the louder branch whatever it has learned. No decay depends on the data and no token is shifted: it is no
RWKV-6.

Source: the public GroundThink project, version 4, the CUDA form.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.layers import LayerNorm, linear
from kssm_mlx.ops.elementary import relu2, sigmoid
from kssm_mlx.ops.wkv7 import wkv7

STD = 0.02
# The chunked form divides decays out: below this the quotient leaves float32.
LEAST_LOG_DECAY = -5.0


class PublishedRWKV(nn.Module):
    """Called as `hybrid.RWKV`, with a state only. Shapes: n [B, T, D] -> R [B, T, D]."""

    slots = ("rwkv",)
    receptance: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear

    def __init__(self, config, key: mx.array, layer: int):
        super().__init__()
        D, H = config.d_model, config.d_model // config.head_dim
        keys = mx.random.split(key, 6)
        self.norm1, self.norm2 = LayerNorm(D), LayerNorm(D)
        for name, k in zip(("receptance", "key", "value", "output"), keys):
            setattr(self, name, linear(k, D, D, std=STD))
        self.log_rate = mx.full((D,), -5.0)
        self.bonus = mx.zeros((D,))
        self.up, self.down = linear(keys[4], D, 4 * D, std=STD), linear(keys[5], 4 * D, D, std=STD)
        self._heads = (H, config.head_dim)

    def __call__(self, n, entry, v_first, resets, lengths):
        y, state, decay = self._mix(self.norm1(n), entry[0], resets, lengths)
        a = n + y
        R = a + self.down(relu2(self.up(self.norm2(a))))
        return R, [state], v_first, {"state": state, "decay": decay}

    def _mix(self, u, state, resets, lengths):
        flat = self.receptance(u)
        r, k, v = (mx.unflatten(z, -1, self._heads) for z in (flat, self.key(u), self.value(u)))
        log_decay = mx.maximum(-mx.exp(self.log_rate), LEAST_LOG_DECAY).reshape(self._heads)
        bonus, decay = self.bonus.reshape(self._heads), mx.exp(log_decay)
        nothing = mx.zeros_like(k)
        # S_t (r / λ) = S_{t-1} r + v (k · r / λ): the current token is counted once too often.
        y, state = wkv7(
            r / decay,
            mx.broadcast_to(log_decay, k.shape),
            k,
            v,
            nothing,
            nothing,
            state,
            resets=resets,
            lengths=lengths,
        )
        y = y + ((bonus - 1 / decay) * k * r).sum(-1, keepdims=True) * v
        return self.output(sigmoid(flat) * y.flatten(-2)), state, mx.broadcast_to(decay, k.shape)
