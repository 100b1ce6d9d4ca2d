"""The memory of GroundThink's version 3: a d x d state per head, under one decay, read through a norm.

    r, g = σ(W_r u), σ(W_g u);  k, v = W_k u, W_v u          u grounded: u + 0.1 conv(u)
    w = α b + (1 - α) s,   b = exp(-e^β) static,   s = exp(-e^{W_d u + c}) chosen by the token
    S_t = ρ_t S_{t-1} + sqrt(1 - ρ_t²) k_t v_tᵀ,   ρ_t = exp(mean of ln w over the head's channels)
    y = W_o (g · r_tᵀ norm(S_t) / sqrt(d))

The state is linear: what a token wrote counts ρ as much one token later, and nothing else makes it forgotten.
Written at sqrt(1 - ρ²), independent keys and values keep it at unit RMS. Other norms, and what was published:

    state_norm = "token"    S itself is normed after every token, as was intended: writes that agree with what
                            is there then push it out faster than ρ
    state_norm = "call"     (published) S is normed once, when a call ends, and read as it is: results depend
                            on how a text is cut, and a reset leaves zeros, whatever a document begins with
    decay = "published"     ρ = 1 - w: the channel that should remember best forgets fastest; w is clamped to
                            [.01, .99], b = e^{-β}, no c, and writes have full size
    grounding = false       (published) the convolution was computed and then not used

Source: the public GroundThink project, version 3 and version 0.2.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.layers import linear
from kssm_mlx.ops.conv import causal_conv
from kssm_mlx.ops.elementary import sigmoid
from kssm_mlx.ops.norms import rms_norm
from kssm_mlx.ops.scan import linear_scan, mask_resets, mask_tokens, tree_split
from kssm_mlx.ops.ssd import ssd

CONV_WIDTH = 4
NORM_EPS = 1e-5


class StateNorm(nn.Module):
    """Unit RMS in each of G equal groups of a head's d² numbers, then a gain. Shapes: S [..., d, d]."""

    def __init__(self, d: int, groups: int, gain: bool):
        super().__init__()
        if gain:
            self.weight = mx.ones((d * d,))
        self._groups = groups

    def __call__(self, S: mx.array) -> mx.array:
        grouped = mx.unflatten(S.flatten(-2), -1, (self._groups, -1))
        normed = rms_norm(grouped, None, NORM_EPS).flatten(-2)
        return (normed * self.weight if "weight" in self else normed).reshape(S.shape)


class Memory(nn.Module):
    """Shapes: u [B, T, D] -> y [B, T, D], entry: conv [B, 3, D] with grounding, state [B, H, d, d]; trace."""

    receptance: nn.Linear
    key: nn.Linear
    value: nn.Linear
    gate: nn.Linear
    decay: nn.Linear
    output: nn.Linear

    def __init__(self, config, key: mx.array):
        super().__init__()
        D, H, d = config.d_model, config.n_heads, config.d_model // config.n_heads
        keys = iter(mx.random.split(key, 9))
        for name in ("receptance", "key", "value", "gate", "decay", "output"):
            setattr(self, name, linear(next(keys), D, D))
        self.base_decay = mx.zeros((D,))
        if config.decay == "repaired":
            self.decay_bias = mx.zeros((D,))
        self.norm = StateNorm(d, config.groups, gain=config.wiring == "v3")
        if config.wiring == "v3":
            self.h0 = 0.01 * mx.random.normal((H, d, d), key=next(keys))
        if config.grounding:
            self.conv_weight = CONV_WIDTH**-0.5 * mx.random.uniform(-1, 1, (D, CONV_WIDTH), key=next(keys))
        self._config, self._shape = config, (H, d)
        INITS[config.init](self, config, mx.random.split(next(keys), 3))

    @property
    def slots(self) -> tuple[str, ...]:
        return ("conv", "state") if self._config.grounding else ("state",)

    def __call__(self, u, entry, resets, lengths):
        *conv, S0 = entry
        if self._config.grounding:
            grounded, *conv = causal_conv(u, self.conv_weight, None, *conv, resets=resets, lengths=lengths)
            u = u + 0.1 * grounded
        r, k, v = (mx.unflatten(w(u), -1, self._shape) for w in (self.receptance, self.key, self.value))
        log_decay = self.log_decay(u)
        S0 = mx.broadcast_to(self.start, (u.shape[0], *self.start.shape)) if S0 is None else S0
        recur = {"read": self._read, "token": self._by_token, "call": self._by_call}[self._config.state_norm]
        o, S = recur(sigmoid(r).astype(mx.float32), k, v, log_decay, S0, resets, lengths)
        y = self.output(sigmoid(self.gate(u)) * (o * self._shape[1] ** -0.5).flatten(-2).astype(u.dtype))
        return y, [*conv, S], {"rwkv": y, "decay": mx.exp(log_decay), "state": S}

    @property
    def start(self) -> mx.array:
        """What a document begins with, [H, d, d]: learned, or nothing in version 0.2."""
        H, d = self._shape
        return self.h0.astype(mx.float32) if "h0" in self else mx.zeros((H, d, d))

    def log_decay(self, u: mx.array) -> mx.array:
        """ln ρ of each head. Shapes: u [B, T, D] -> [B, T, H], fp32."""
        alpha, chosen = self._config.blend, self.decay(u).astype(mx.float32)
        if self._config.decay == "published":
            w = alpha * mx.exp(-self.base_decay) + (1 - alpha) * mx.exp(-mx.exp(chosen))
            log_w = mx.log(1 - mx.clip(w, 0.01, 0.99) + 1e-6)
        else:
            static, chosen = mx.exp(-mx.exp(self.base_decay)), mx.exp(-mx.exp(chosen + self.decay_bias))
            log_w = mx.log(mx.maximum(alpha * static + (1 - alpha) * chosen, 1e-6))
        return mx.unflatten(log_w, -1, self._shape).mean(axis=-1)

    def _scale_keys(self, k: mx.array, log_decay: mx.array) -> mx.array:
        """Keys at the size that suits the decay."""
        k = k.astype(mx.float32)
        if self._config.decay == "published":
            return k
        return mx.sqrt(-mx.expm1(2 * log_decay))[..., None] * k

    def _read(self, r, k, v, log_decay, S0, resets, lengths):
        """The recurrence is linear and the norm is between it and what is read."""
        decay = mx.exp(log_decay)[..., None, None]
        writes = self._scale_keys(k, log_decay)[..., None] * v.astype(mx.float32)[..., None, :]
        if resets is not None:
            begins_here = mask_resets(resets, lengths)[..., None, None, None]
            # A document begins with the learned start, which decays as any state before it would.
            writes = writes + mx.where(begins_here, decay * self.start, 0)
            decay = mx.where(begins_here, 0, decay)
        if lengths is not None:
            valid = mask_tokens(lengths, r.shape[1])[..., None, None, None]
            decay, writes = mx.where(valid, decay, 1), mx.where(valid, writes, 0)
        # Scans have time first.
        decay = mx.broadcast_to(decay, writes.shape)
        S = linear_scan(decay.swapaxes(0, 1), writes.swapaxes(0, 1), S0)
        return (r[..., None, :] @ self.norm(S.swapaxes(0, 1))).squeeze(-2), S[-1]

    def _by_token(self, r, k, v, log_decay, S, resets, lengths):
        """The norm inside the recurrence, which is then serial."""
        by_time = (mx.exp(log_decay), self._scale_keys(k, log_decay), v.astype(mx.float32))
        states, steps = [], zip(*(tree_split(x.swapaxes(0, 1)) for x in by_time))
        for t, (decay, k_t, v_t) in enumerate(steps):
            begun = S if resets is None else mx.where(resets[:, t, None, None, None], self.start, S)
            new = self.norm(decay[0, ..., None, None] * begun + k_t[0, ..., None] * v_t[0, ..., None, :])
            S = new if lengths is None else mx.where((t < lengths)[:, None, None, None], new, S)
            states.append(new)
        return (r[..., None, :] @ mx.stack(states, axis=1)).squeeze(-2), S

    def _by_call(self, r, k, v, log_decay, S, resets, lengths):
        """The norm when the call is over."""
        # SSD decays by exp(A dt) and writes dt k v: with A = -1 and v divided by dt, both are as here.
        dt = mx.maximum(-log_decay, 1e-6)
        A, x = mx.full(dt.shape[-1:], -1.0), v.astype(mx.float32) / dt[..., None]
        k = self._scale_keys(k, log_decay)
        o, S = ssd(x, dt, A, k, r, S.swapaxes(-1, -2), resets=resets, lengths=lengths)
        return o, self.norm(S.swapaxes(-1, -2))


def identity(memory: Memory, config, keys) -> None:
    """Every head begins with the retention per token that is asked for, whatever the token."""
    rate = math.log(-math.log(config.retention))
    memory.decay.weight = mx.zeros_like(memory.decay.weight)
    memory.base_decay, memory.decay_bias = mx.full((config.d_model,), rate), mx.full((config.d_model,), rate)
    memory.output.weight = (2 * config.n_layers) ** -0.5 * memory.output.weight


def senior(memory: Memory, config, keys) -> None:
    """As published: called perfect memory, it keeps 0.253 per token; and a gate open for all or for none."""
    D = config.d_model
    memory.decay.weight = mx.zeros((D, D))
    memory.gate.weight = mx.random.uniform(0.9, 1.1, (D, D), key=keys[0])
    memory.output.weight = 0.1 * memory.output.weight


def v020(memory: Memory, config, keys) -> None:
    """As version 0.2 began."""
    D = config.d_model
    memory.decay.weight = mx.random.uniform(-1, -0.5, (D, D), key=keys[0])
    memory.base_decay = mx.full((D,), 0.5)
    memory.output.weight = 0.02 * (2 * config.n_layers) ** -0.5 * D**0.5 * memory.output.weight


INITS = {"identity": identity, "senior": senior, "v020": v020}
