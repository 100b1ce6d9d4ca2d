"""A transformer: the baseline without a recurrent state, from GPT-2 to one layer with its norms behind.

    pre     x + attention(norm x), then x + mlp(norm x)          GPT-2: GELU, learned positions, tied head
    post    norm(x + attention x), then norm(x + mlp x)          the clamp experiment: ReLU, an untied head

Both end in a norm before the head. A cache makes it as chunk-invariant as a recurrence, but it grows with the
text; a text longer than `context` is refused where positions are learned.
Parameters:

    embedding.weight [V, D]   position [context, D], learned only   norm.{weight,bias} [D]   head.weight
    blocks.N.attention.  qkv.weight [3D, D]   out.weight [D, D]   blocks.N.{norm1,norm2}.{weight,bias} [D]
    blocks.N.mlp.  up.weight [F, D]   down.weight [D, F]          and biases of all projections with `bias`

Source: Vaswani et al. 2017, "Attention is all you need"; Radford et al. 2019 for the order of the norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.attention import Attention, positions
from kssm_mlx.models.base import Intervention, refuse_counts_below_one
from kssm_mlx.models.layers import MLP, LayerNorm, linear
from kssm_mlx.models.recurrent import Stack


@dataclass(frozen=True)
class TransformerConfig:
    """d_ff: width of the feed-forward, 4 d_model when None, none at all when 0.

    positions: "rotary" and "none" know no longest text. head_bias: a bias for an untied head.
    causal: False is the legacy of the clamp experiment, in which every token sees the whole window.
    """

    vocab_size: int
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int | None = None
    context: int = 256
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    positions: Literal["learned", "rotary", "none"] = "learned"
    bias: bool = True
    tie_embeddings: bool = True
    head_bias: bool = False
    dropout: float = 0.0
    causal: bool = True
    norm_eps: float = 1e-5
    model_type: Literal["transformer"] = "transformer"

    def __post_init__(self):
        refuse_counts_below_one(self, "d_ff")
        if self.d_model % self.n_heads:
            raise ConfigError(f"model.d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.positions == "rotary" and self.d_model // self.n_heads % 2:
            raise ConfigError(
                f"rotary positions need an even width per head, got {self.d_model // self.n_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is in [0, 1), got {self.dropout}")
        if self.head_bias and self.tie_embeddings:
            raise ConfigError("model.head_bias is that of an untied head; set tie_embeddings = false")

    @property
    def wide(self) -> int:
        return 4 * self.d_model if self.d_ff is None else self.d_ff


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"d_model": 64, "n_layers": 2},
    "s": {"d_model": 128, "n_layers": 4},
    "m": {"d_model": 384, "n_layers": 6, "n_heads": 6},
    "l": {"d_model": 768, "n_layers": 12, "n_heads": 12},
}


def preset(size: str, vocab_size: int, context: int) -> TransformerConfig:
    """The configuration behind one word; `l` is GPT-2 small.

    1024 positions, as in GPT-2, so that more than a training window can be generated; those after it stay as
    they began.
    """
    return TransformerConfig(vocab_size=vocab_size, context=max(context, 1024), **SIZES[size])


class Block(nn.Module):
    """Attention and feed-forward, each with a norm in front of it or behind its sum with the stream."""

    def __init__(self, config: TransformerConfig, key: mx.array):
        super().__init__()
        k_attention, k_mlp = mx.random.split(key)
        D, bias = config.d_model, config.bias
        # GPT-2's: 2 n_layers writes add up in the stream, each smaller by the root of their number.
        weights = {"std": 0.02, "out_std": 0.02 * (2 * config.n_layers) ** -0.5, "bias": bias}
        rotary = config.positions == "rotary"
        self.attention = Attention(
            k_attention, D, config.n_heads, rotary=rotary, causal=config.causal, **weights
        )
        self.norm1 = LayerNorm(D, config.norm_eps, bias=bias)
        self._post = config.norm == "post"
        if config.wide or self._post:
            self.norm2 = LayerNorm(D, config.norm_eps, bias=bias)
        if config.wide:
            self.mlp = MLP(k_mlp, D, config.wide, activation=config.activation, **weights)
        self._dropout = config.dropout

    def __call__(self, x, entry, key, resets, lengths, clamps=(), inside=None):
        trace = {}
        key, k_attention, k_mlp = (None,) * 3 if key is None else mx.random.split(key, 3)
        normed = x if self._post else self.norm1(x)
        y, entry = self.attention(normed, entry, resets, lengths, clamps, inside, trace)
        x = x + self._drop_out(y, k_attention)
        x = self.norm1(x) if self._post else x
        if "mlp" in self:
            x = x + self._drop_out(self.mlp(x if self._post else self.norm2(x)), k_mlp)
        return self.norm2(x) if self._post else x, entry, key, trace

    def _drop_out(self, y: mx.array, key: mx.array | None) -> mx.array:
        return dropout(y, self._dropout, key) if self.training else y


def dropout(x: mx.array, p: float, key: mx.array | None) -> mx.array:
    """x with each entry zero with probability p and scaled by 1 / (1 - p) otherwise."""
    return x if p == 0 else mx.where(mx.random.bernoulli(1 - p, x.shape, key=key), x / (1 - p), 0)


class Transformer(Stack):
    """The language model; see `models.base.LanguageModel` for the interface.

    Cache: keys and values [B, S, H, d], and position [B, S] int32, of which entries are seen (attention.py).
    Clamp site "heads": what a head puts out before the output projection; its units are the heads.
    """

    slots = ("keys", "values", "position")
    clamp_sites = ("heads", "output")
    act_sites = ("S0", "S1", "S2", "S4", "routing")
    fp32: tuple[str, ...] = ()
    no_quant: tuple[str, ...] = ()
    no_decay = ("bias", "norm1.weight", "norm2.weight", "norm.weight", "position")

    def __init__(self, config: TransformerConfig, seed: int = 0):
        super().__init__(config)
        keys = mx.random.split(mx.random.key(seed), config.n_layers + 3)
        V, D = config.vocab_size, config.d_model
        self.embedding = nn.Embedding(V, D)
        self.embedding.weight = 0.02 * mx.random.normal((V, D), key=keys[0])
        if config.positions == "learned":
            self.position = 0.02 * mx.random.normal((config.context, D), key=keys[1])
        self.blocks = [Block(config, key) for key in keys[3:]]
        self.norm = LayerNorm(D, config.norm_eps, bias=config.bias)
        if not config.tie_embeddings:
            self.head = linear(keys[2], D, V, std=0.02, bias=config.head_bias)

    @property
    def stochastic(self) -> bool:
        return self.args.dropout > 0

    def enter(self, tokens, cache, resets, lengths, key):
        """Embeddings and positions, and the key that dropout goes on with."""
        x, past = self.embed(tokens), None if cache is None else cache[0][2]
        if "position" in self:
            self._refuse_longer(tokens.shape[1] + (0 if past is None else past.shape[1]))
            at = positions(past, resets, lengths, tokens.shape[1])
            # Padding has position -1, whose row nobody reads.
            x = x + self.position[mx.maximum(at, 0)]
        first, key = (None, None) if key is None else mx.random.split(key)
        return (dropout(x, self.args.dropout, first) if self.training else x), key

    def _refuse_longer(self, tokens: int) -> None:
        if tokens > self.args.context:
            raise ConfigError(
                f"{tokens} tokens do not fit into the context of {self.args.context} with learned positions; "
                'shorten the text, or train with a larger model.context or model.positions = "rotary"'
            )

    def runner(self, i: int, intervention: Intervention | None):
        clamps = () if intervention is None else intervention.of("heads", i)
        return partial(super().runner(i, intervention), clamps=clamps)
