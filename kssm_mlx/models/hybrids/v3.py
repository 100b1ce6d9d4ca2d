"""GroundThink's version 3: blocks of gated linear memory, one of attention, in small steps.

    x + γ₁ memory(norm x), then x + γ₂ W_v (relu(W_k z)²) σ(W_r z), z = norm x        γ = 0.01 at the start
    an anchor (layer L // 2) has attention in the memory's place

The defaults are the repaired form; the published one is spelt decay, init, state_norm, grounding and anchor
(hybrid_memory.py; `PUBLISHED`). There is no Mamba in it, whatever it was called. wiring = "v020" is its
predecessor, whose norms stand in the stream itself:

    a = n + norm(memory n), n = norm x;   then z + norm(mlp z), z = norm a

anchor = "window" sees the `window` tokens before it by rotary positions, with a cache of that size;
"segment" (published) has no positions and no cache: it sees the current call, one token when generating.

Source: the public GroundThink project, versions 3 and 0.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.attention import Attention
from kssm_mlx.models.base import refuse_counts_below_one
from kssm_mlx.models.hybrids.gated_memory import Memory
from kssm_mlx.models.layers import RMSNorm, linear
from kssm_mlx.models.recurrent import Stack
from kssm_mlx.ops.elementary import relu2, sigmoid


@dataclass(frozen=True)
class HybridV3Config:
    """attention: the layers that are anchors; the middle one when None, none in "v020".

    retention: what the identity initialisation keeps per token, 2^(-1 / half-life). blend: α, the share of
    the static decay. groups: of the state norm.
    """

    vocab_size: int
    d_model: int = 256
    n_layers: int = 12
    n_heads: int = 8
    wiring: Literal["v3", "v020"] = "v3"
    attention: tuple[int, ...] | None = None
    anchor: Literal["window", "segment"] = "window"
    window: int = 256
    decay: Literal["repaired", "published"] = "repaired"
    init: Literal["identity", "senior", "v020"] = "identity"
    retention: float = 0.9999
    blend: float = 0.6
    state_norm: Literal["read", "token", "call"] = "read"
    groups: int = 4
    grounding: bool = True
    gamma: float = 0.01
    mlp_ratio: float = 3.5
    tie_embeddings: bool = True
    norm_eps: float = 1e-6
    model_type: Literal["hybrid_v3"] = "hybrid_v3"

    def __post_init__(self):
        refuse_counts_below_one(self)
        if self.d_model % self.n_heads:
            raise ConfigError(f"model.d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if (self.d_model // self.n_heads) ** 2 % self.groups:
            state = (self.d_model // self.n_heads) ** 2
            raise ConfigError(f"model.groups {self.groups} does not divide a head's state of {state}")
        if not self.mlp_ratio * self.d_model >= 1:
            raise ConfigError(f"model.mlp_ratio {self.mlp_ratio} leaves channel mixing without a channel")
        if not 0 <= self.blend <= 1:
            raise ConfigError(f"model.blend is a share between 0 and 1, got {self.blend}")
        if not 0 < self.retention < 1:
            raise ConfigError(f"model.retention is between 0 and 1 per token, got {self.retention}")
        if self.init == "identity" and self.decay == "published":
            raise ConfigError(
                'decay = "published" cannot begin with a chosen retention, it is clamped and inverted; '
                'take decay = "repaired", or init = "senior" as published'
            )
        if self.init != "identity" and self.retention != HybridV3Config.retention:
            raise ConfigError('model.retention is what init = "identity" begins with; leave it out otherwise')
        if self.wiring == "v020" and self.gamma != HybridV3Config.gamma:
            raise ConfigError('wiring = "v020" has no gamma; leave model.gamma out, or take wiring = "v3"')
        for layer in self.anchors:
            if self.wiring == "v020" or not 0 <= layer < self.n_layers:
                raise ConfigError(f"model.attention: no anchor can be at layer {layer}")

    @property
    def anchors(self) -> tuple[int, ...]:
        middle = (self.n_layers // 2,) if self.wiring == "v3" else ()
        return middle if self.attention is None else self.attention


# The published form of each version, as overrides. What was built and never used is left out: an h0 for the
# anchor, `res_weight`, the convolution.
PUBLISHED = {
    "v3": {"decay": "published", "init": "senior", "state_norm": "call", "grounding": False}
    | {"anchor": "segment"},
    "v020": {"wiring": "v020", "decay": "published", "init": "v020", "state_norm": "call", "grounding": False}
    | {"n_layers": 6, "groups": 32},
}
SIZES: dict[str, dict[str, Any]] = {
    "xs": {"d_model": 64, "n_layers": 3, "n_heads": 2},
    "s": {"d_model": 128, "n_layers": 6, "n_heads": 4},
    "m": {},
    "l": {"d_model": 384, "n_heads": 12, "attention": (5, 11)},
}


def preset(size: str, vocab_size: int, context: int) -> HybridV3Config:
    """The configuration behind one word; `m` is what was called 8M and has 11 million parameters."""
    return HybridV3Config(vocab_size=vocab_size, window=context, **SIZES[size])


class ChannelMixing(nn.Module):
    """W_v (relu(W_k z)²) σ(W_r z). Shapes: [..., D] -> [..., D]."""

    def __init__(self, config: HybridV3Config, key: mx.array):
        super().__init__()
        D, hidden = config.d_model, int(config.mlp_ratio * config.d_model)
        keys = mx.random.split(key, 3)
        self.receptance, self.key = linear(keys[0], D, D), linear(keys[1], D, hidden)
        self.value = linear(keys[2], hidden, D, std=(2 * config.n_layers * hidden) ** -0.5)

    def __call__(self, z: mx.array) -> mx.array:
        return sigmoid(self.receptance(z)) * self.value(relu2(self.key(z)))


class Block(nn.Module):
    """A memory, or attention, and channel mixing, wired as the version has it."""

    def __init__(self, config: HybridV3Config, key: mx.array, anchor: bool):
        super().__init__()
        k_mixer, k_mlp = mx.random.split(key)
        D, eps = config.d_model, config.norm_eps
        self.norm1, self.norm2 = RMSNorm(D, eps), RMSNorm(D, eps)
        if anchor:
            positions = {"rotary": True, "reach": config.window} if config.anchor == "window" else {}
            self.attention = Attention(k_mixer, D, config.n_heads, **positions)
        else:
            self.rwkv = Memory(config, k_mixer)
        self.mlp = ChannelMixing(config, k_mlp)
        if config.wiring == "v3":
            self.scale1, self.scale2 = mx.full((D,), config.gamma), mx.full((D,), config.gamma)
        else:
            self.norm_mixed, self.norm_mlp = RMSNorm(D, eps), RMSNorm(D, eps)
        cached = ("keys", "values", "position") if config.anchor == "window" else ()
        self.slots = cached if anchor else self.rwkv.slots

    def __call__(self, x, entry, carried, resets, lengths):
        n = self.norm1(x)
        y, entry, trace = self._mix(n, entry, resets, lengths)
        if "scale1" in self:
            x = x + self.scale1 * y
            return x + self.scale2 * self.mlp(self.norm2(x)), entry, carried, trace
        z = self.norm2(n + self.norm_mixed(y))
        return z + self.norm_mlp(self.mlp(z)), entry, carried, trace

    def _mix(self, n, entry, resets, lengths):
        if "rwkv" in self:
            return self.rwkv(n, entry, resets, lengths)
        y, cached = self.attention(n, entry or [None] * 3, resets, lengths)
        return y, cached if self.slots else [], {}


class HybridV3(Stack):
    """The language model; see `models.base.LanguageModel` for the interface.

    Cache: conv [B, 3, D] and state [B, H, d, d], fp32, of a memory; keys, values [B, window, H, d] and
    position [B, window] of an anchor. All are of fixed size.
    """

    slots = ("conv", "state", "keys", "values", "position")
    fp32 = ("base_decay", "decay_bias", "h0")
    no_quant = ("decay",)
    no_decay = (
        *("base_decay", "decay_bias", "rwkv.decay.weight", "rwkv.gate.weight", "h0", "conv_weight"),
        *("norm.weight", "norm1.weight", "norm2.weight", "norm_mixed.weight", "norm_mlp.weight"),
        *("scale1", "scale2", "embedding.weight"),
    )

    def __init__(self, config: HybridV3Config, seed: int = 0):
        super().__init__(config)
        keys = mx.random.split(mx.random.key(seed), config.n_layers + 2)
        V, D = config.vocab_size, config.d_model
        self.embedding = nn.Embedding(V, D)
        # The blocks begin small, so a tied head meets the embedding it came from: at 1/D with a logit of 1.
        self.embedding.weight = (1 / D if config.tie_embeddings else 0.02) * mx.random.normal(
            (V, D), key=keys[0]
        )
        self.blocks = [Block(config, key, i in config.anchors) for i, key in enumerate(keys[2:])]
        self.norm = RMSNorm(D, config.norm_eps)
        if not config.tie_embeddings:
            self.head = linear(keys[1], D, V, std=0.02)

    def slots_of(self, i: int) -> tuple[str, ...]:
        return self.blocks[i].slots
