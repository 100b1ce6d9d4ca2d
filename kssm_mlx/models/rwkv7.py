"""RWKV-7 "Goose": a matrix state per head under the generalised delta rule, its factors token dependent.

    x_c = x + (x_{t-1} - x) μ_c,  c in r, w, k, v, a, g
    r, k, v = W_r x_r, W_k x_k, W_v x_v;  log w = -e^{-1/2} σ(lora_w x_w);  a = σ(lora_a x_a);  g = lora_g x_g
    v = v + (v_first - v) σ(lora_v x_v)                      (all blocks but the first, whose v is v_first)
    κ = k k_k / |k k_k| per head;  k = k (1 + (a - 1) k_a)
    S_t = S_{t-1} (diag(w) - κ (κ a)ᵀ) + v kᵀ
    x + W_o (g (norm(S_t r) + (Σ r r_k k) v));  then channel mixing, x + W_v relu(W_k (x + (x_{t-1} - x) μ))²

Parameter names are those of the Hugging Face files of the `fla` library, shapes included:

    model.embeddings.weight [V, D]   model.norm.{weight,bias} [D]   lm_head.weight [V, D], absent where tied
    model.layers.0.pre_norm.{weight,bias} [D]   model.layers.N.{attn_norm,ffn_norm}.{weight,bias} [D]
    model.layers.N.attn.  x_{r,w,k,v,a,g} [1, 1, D]   k_k, k_a [D]   r_k [H, K]   g_norm.{weight,bias} [D]
        {r,k,v,o}_proj.weight [D, D]   {w,a,v,g}_lora.lora.0.weight [low, D]
        {w,a,v,g}_lora.lora.2.weight [D, low]   {w,a,v}_lora.lora.2.bias [D]
    model.layers.N.ffn.  x_k [D]   key.weight [F, D]   value.weight [D, F]

Source: Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import refuse_counts_below_one
from kssm_mlx.models.layers import LayerNorm, Sigmoid, Tanh, linear
from kssm_mlx.models.recurrent import (
    EVERY_SITE,
    RecurrentModel,
    orthogonal,
    pick_given,
    refuse_unless,
    require_field,
)
from kssm_mlx.ops.elementary import biased_sigmoid, relu2, sigmoid
from kssm_mlx.ops.norms import layer_norm, rms_norm
from kssm_mlx.ops.token_mix import token_mix
from kssm_mlx.ops.wkv7 import wkv7


@dataclass(frozen=True)
class RWKV7Config:
    """*_low_rank_dim: inner widths of the low-rank maps behind decay w, rate a, value mix v and gate g.
    head_norm_eps: of the norm over each head; head_dim times norm_eps when None, as in `fla`.
    """

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 3
    head_dim: int = 64
    intermediate_size: int | None = None
    decay_low_rank_dim: int = 32
    a_low_rank_dim: int = 32
    v_low_rank_dim: int = 32
    gate_low_rank_dim: int = 64
    norm_eps: float = 1e-5
    head_norm_eps: float | None = None
    tie_word_embeddings: bool = False
    model_type: Literal["rwkv7"] = "rwkv7"

    def __post_init__(self):
        refuse_counts_below_one(self)
        if self.hidden_size % self.head_dim:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of head_dim {self.head_dim}")

    @property
    def heads(self) -> int:
        return self.hidden_size // self.head_dim

    @property
    def wide(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def heads_eps(self) -> float:
        return self.norm_eps * self.head_dim if self.head_norm_eps is None else self.head_norm_eps

    @classmethod
    def from_huggingface(cls, values: dict[str, Any]) -> RWKV7Config:
        """From fla's `config.json`. Raises: ConfigError for missing keys and unsupported values."""
        refuse_unless(values, "hidden_act", "sqrelu", "relu2")
        refuse_unless(values, "norm_first", True)
        refuse_unless(values, "norm_bias", True)
        refuse_unless(values, "attn", None)
        hidden = require_field(values, "hidden_size")
        head_dim = values.get("head_dim") or hidden // require_field(values, "num_heads")
        _refuse_other_widths(values, hidden, head_dim)
        ratio = values.get("hidden_ratio") or 4
        return cls(
            vocab_size=require_field(values, "vocab_size"),
            hidden_size=hidden,
            num_hidden_layers=require_field(values, "num_hidden_layers"),
            head_dim=head_dim,
            intermediate_size=values.get("intermediate_size") or 32 * math.ceil(hidden * ratio / 32),
            **{name: values.get(name) or low_rank(hidden, factor) for name, factor in LOW_RANKS.items()},
            **pick_given(values, "norm_eps", "head_norm_eps", "tie_word_embeddings"),
        )


def _refuse_other_widths(values: dict[str, Any], hidden: int, head_dim: int) -> None:
    """Raises: ConfigError for values of another width than keys, and heads that do not fill the width."""
    widths = values.get("value_dim")
    if widths is not None and any(w != hidden for w in (widths if isinstance(widths, list) else [widths])):
        raise ConfigError(
            f"config.json has value_dim = {widths!r}; only hidden_size, {hidden}, is implemented"
        )
    heads = values.get("num_heads")
    if heads is not None and heads * head_dim != hidden:
        raise ConfigError(
            f"config.json has {heads} heads of {head_dim}, which do not fill hidden_size {hidden}"
        )


LOW_RANKS = {
    "decay_low_rank_dim": 2.5,
    "a_low_rank_dim": 2.5,
    "v_low_rank_dim": 1.7,
    "gate_low_rank_dim": 5.0,
}


def low_rank(hidden: int, factor: float) -> int:
    """The width that the authors suggest: factor sqrt(hidden), in steps of 32."""
    return max(32, 32 * round(factor * hidden**0.5 / 32))


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"hidden_size": 64, "num_hidden_layers": 2, "head_dim": 32},
    "s": {"hidden_size": 128, "num_hidden_layers": 3, "head_dim": 32},
    "m": {"hidden_size": 384, "num_hidden_layers": 8},
    "l": {"hidden_size": 768, "num_hidden_layers": 12},
}


def preset(size: str, vocab_size: int, context: int) -> RWKV7Config:
    """The configuration behind one word; decays span all time scales whatever the context is."""
    hidden = SIZES[size]["hidden_size"]
    ranks: dict[str, Any] = {name: low_rank(hidden, factor) for name, factor in LOW_RANKS.items()}
    return RWKV7Config(vocab_size=vocab_size, **SIZES[size], **ranks)


class LowRank(nn.Module):
    """b + B f(A x), with A = 0 at the start. Shapes: x [..., D] -> [..., D]."""

    def __init__(self, key: mx.array, D: int, low: int, f: nn.Module, bias: mx.array | None = None):
        super().__init__()
        self.lora = [linear(key, D, low, std=0.0), f, linear(key, low, D, bias=bias is not None)]
        self.lora[2].weight = orthogonal(key, D, low, gain=0.1)
        if bias is not None:
            self.lora[2].bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        inner, f, outer = self.lora
        return outer(f(inner(x)))

    def gate(self, x: mx.array) -> mx.array:
        """sigmoid(self(x)), a plain bias being added on the way."""
        inner, f, outer = self.lora
        if type(outer) is not nn.Linear or "bias" not in outer:
            return sigmoid(self(x))
        return biased_sigmoid(f(inner(x)) @ outer.weight.T, outer.bias)


class HeadNorm(nn.Module):
    """Layer norm over each head, with one weight and bias per channel. Shapes: y [B, T, H, K]."""

    def __init__(self, heads: int, K: int, eps: float, weight: float):
        super().__init__()
        self.weight = mx.full((heads * K,), weight)
        self.bias = mx.zeros((heads * K,))
        self._eps = eps

    def __call__(self, y: mx.array) -> mx.array:
        weight, bias = (p.reshape(y.shape[-2:]) for p in (self.weight, self.bias))
        return layer_norm(y, weight, bias, self._eps)


class TimeMixing(nn.Module):
    """The attention of RWKV-7. Shapes: x [B, T, D] -> y [B, T, D], shift, state, v_first, trace.

    tap: what is done to what was read from the state [B, T, D] before the gate and the output projection.
    """

    def __init__(self, config: RWKV7Config, key: mx.array, layer: int):
        super().__init__()
        D, H, K, L = config.hidden_size, config.heads, config.head_dim, config.num_hidden_layers
        keys = mx.random.split(key, 7)
        depth, ratio = layer / max(L - 1, 1), 1 - layer / L
        position = (mx.arange(D) / D)[None, None]
        for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            setattr(self, f"x_{name}", 1 - position ** (power * ratio))
        line = mx.arange(D) / max(D - 1, 1) - 0.5
        # Over the width channels begin at different rates by `line`, within a head by `zigzag`.
        zigzag = (mx.arange(D) % K - (K - 1) / 2) / ((K - 1) / 2)
        zigzag = zigzag * mx.abs(zigzag)
        same = nn.Identity()
        decay = -6 + 6 * (line + 0.5) ** (1 + depth**0.3)
        self.w_lora = LowRank(keys[0], D, config.decay_low_rank_dim, Tanh(), decay + 0.5 + 2.5 * zigzag)
        self.a_lora = LowRank(keys[1], D, config.a_low_rank_dim, same, -0.19 + 0.3 * zigzag + 0.4 * line)
        self.g_lora = LowRank(keys[2], D, config.gate_low_rank_dim, Sigmoid())
        if layer > 0:
            self.v_lora = LowRank(keys[3], D, config.v_low_rank_dim, same, 0.73 - 0.4 * line)
        self.k_k, self.k_a, self.r_k = 0.71 - 0.1 * line, mx.full((D,), 1.02), mx.full((H, K), -0.04)
        self.r_proj = linear(keys[4], D, D, std=(12 * D) ** -0.5)
        # Small keys: at the start a token changes little of the state.
        self.k_proj = linear(keys[5], D, D, std=0.1 * (12 * D) ** -0.5)
        self.v_proj = linear(keys[6], D, D, std=(12 * D) ** -0.5)
        # Zero: every block begins as the identity.
        self.o_proj = linear(keys[6], D, D, std=0.0)
        self.g_norm = HeadNorm(H, K, config.heads_eps, ((layer + 1) / L) ** 0.7)

    def __call__(self, x, shift, state, v_first, resets, lengths, tap=None, inside=None):
        mu = mx.concatenate([self[f"x_{name}"].reshape(1, -1) for name in "rwkvag"])
        (xr, xw, xk, xv, xa, xg), shift = token_mix(x, mu, shift, resets=resets, lengths=lengths)
        r, k, v, g = self.r_proj(xr), self.k_proj(xk), self.v_proj(xv), self.g_lora(xg)
        # Bounded below: a token keeps at least 54 % of the state, and products over a chunk stay within
        # fp32.
        log_w = -math.exp(-0.5) * self.w_lora.gate(xw).astype(mx.float32)
        a = self.a_lora.gate(xa)
        if inside:
            r, k, log_w, a = (inside.detach_routing(z) for z in (r, k, log_w, a))
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * self.v_lora.gate(xv)
        kappa, k = k * self.k_k, k * (1 + (a - 1) * self.k_a)
        r, log_w, k, v, a, kappa = (mx.unflatten(z, -1, self.r_k.shape) for z in (r, log_w, k, v, a, kappa))
        # Of length 1, so that taking a kappa kappaᵀ out of the state, 0 < a < 1, can only shrink it.
        kappa = unit(kappa.astype(mx.float32))
        y, state = wkv7(r, log_w, k, v, -kappa, kappa * a, state, resets=resets, lengths=lengths)
        # What the token says of itself, past the norm of what was read from the state.
        y = self.g_norm(y) + (r * k * self.r_k).sum(-1, keepdims=True) * v
        y = tap(y.flatten(-2)) if tap else y.flatten(-2)
        y, trace = y.astype(x.dtype) * g, {"decay": mx.exp(log_w), "rate": a, "state": state}
        return self.o_proj(inside.units(y, trace) if inside else y), shift, state, v_first, trace


def unit(x: mx.array) -> mx.array:
    """x / |x| over the last axis, 0 at 0, with a gradient there too."""
    K = x.shape[-1]
    return rms_norm(x, mx.full((K,), K**-0.5), 1e-24)


class ChannelMixing(nn.Module):
    """The feed-forward of RWKV-7. Shapes: x [B, T, D] -> y [B, T, D], shift."""

    def __init__(self, config: RWKV7Config, key: mx.array, layer: int):
        super().__init__()
        D, F = config.hidden_size, config.wide
        self.x_k = 1 - (mx.arange(D) / D) ** ((1 - layer / config.num_hidden_layers) ** 4)
        self.key = linear(key, D, F, std=(12 * D) ** -0.5)
        self.value = linear(key, F, D, std=0.0)

    def __call__(self, x, shift, resets, lengths):
        (xk,), shift = token_mix(x, self.x_k[None], shift, resets=resets, lengths=lengths)
        return self.value(relu2(self.key(xk))), shift


class Block(nn.Module):
    """x + time mixing (norm x), then x + channel mixing (norm x)."""

    def __init__(self, config: RWKV7Config, key: mx.array, layer: int):
        super().__init__()
        D, eps = config.hidden_size, config.norm_eps
        k_attn, k_ffn = mx.random.split(key)
        if layer == 0:
            self.pre_norm = LayerNorm(D, eps)
        self.attn_norm, self.ffn_norm = LayerNorm(D, eps), LayerNorm(D, eps)
        self.attn = TimeMixing(config, k_attn, layer)
        self.ffn = ChannelMixing(config, k_ffn, layer)

    def __call__(self, x, entry, carried, resets, lengths, tap=None, inside=None):
        shift, state, ffn_shift = entry
        # Embeddings are tiny at the start; later blocks get a stream that has a size.
        if "pre_norm" in self:
            x = self.pre_norm(x)
        y, shift, state, carried, trace = self.attn(
            self.attn_norm(x), shift, state, carried, resets, lengths, tap, inside
        )
        x = x + y
        y, ffn_shift = self.ffn(self.ffn_norm(x), ffn_shift, resets, lengths)
        return x + y, [shift, state, ffn_shift], carried, trace


class Backbone(nn.Module):
    """The tree that the files call `model`."""

    def __init__(self, config: RWKV7Config, key: mx.array):
        super().__init__()
        keys = mx.random.split(key, config.num_hidden_layers + 1)
        V, D = config.vocab_size, config.hidden_size
        self.embeddings = nn.Embedding(V, D)
        # Tiny: the first layer norm sets the scale, and every embedding can still turn anywhere.
        self.embeddings.weight = mx.random.uniform(-1e-4, 1e-4, (V, D), key=keys[0])
        self.layers = [Block(config, k, i) for i, k in enumerate(keys[1:])]
        self.norm = LayerNorm(D, config.norm_eps)


class RWKV7(RecurrentModel):
    """The language model; see `models.base.LanguageModel` for the interface.

    Cache: shift [B, D], time mixing's last input; state [B, H, K, K], fp32; ffn_shift [B, D].
    """

    slots = ("shift", "state", "ffn_shift")
    act_sites = EVERY_SITE
    fp32 = ("w_lora.lora.2.bias",)
    no_decay = (*(f".x_{c}" for c in "rwkvag"), "k_k", "k_a", "r_k", "bias", "norm.weight")
    no_quant = ("lora.0", "lora.2")

    def __init__(self, config: RWKV7Config, seed: int = 0):
        super().__init__(config)
        k_backbone, k_head = mx.random.split(mx.random.key(seed))
        self.model = Backbone(config, k_backbone)
        if not config.tie_word_embeddings:
            V, D = config.vocab_size, config.hidden_size
            self.lm_head = linear(k_head, D, V)
            self.lm_head.weight = orthogonal(k_head, V, D, gain=0.5 * max(1.0, (V / D) ** 0.5))

    def embed(self, tokens: mx.array) -> mx.array:
        return self.model.embeddings(tokens)

    def finish(self, x: mx.array) -> mx.array:
        return self.model.norm(x)

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        tied = self.args.tie_word_embeddings
        return self.model.embeddings.as_linear(hidden) if tied else self.lm_head(hidden)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.layers

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """fla's, mlx-lm's (some vectors as [H, K]) or our layout -> ours; no head where it is tied."""
        tied = self.args.tie_word_embeddings
        flat = ("k_k", "k_a", "g_norm.weight", "g_norm.bias")
        return {
            name: value.reshape(-1) if name.endswith(flat) else value
            for name, value in weights.items()
            if not (tied and name == "lm_head.weight")
        }
