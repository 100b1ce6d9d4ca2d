"""What K-SSM v1, v2 and v3 share beside their oscillators: blocks that read one token, and nothing before it.

They say so, `memoryless = True`: their reach is 0 tokens, and the position in v2 and v3 is all they know of
what came before. They are kept as published, unread parameters included, for honest comparisons.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import Intervention, Output, clamp_output, refuse_unknown_clamps
from kssm_mlx.models.recurrent import RecurrentModel


class Precursor(RecurrentModel):
    """A model whose blocks are `block(x, key, clamps) -> x, trace`; the cache counts positions, at most.

    A family adds `embed(tokens, positions, key)`, `finish(x, trace, intervention)` and `project(hidden)`.
    """

    memoryless = True

    def forward(
        self, tokens, cache=None, intervention=None, *, resets=None, lengths=None, key=None
    ) -> Output:
        """Shapes: tokens [B, T] int -> logits [B, T, V], new cache, trace; key for what a family draws."""
        hidden, new, trace = self.hidden(tokens, cache, intervention, resets=resets, lengths=lengths, key=key)
        return Output(self.project(hidden), new, trace)

    def hidden(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None, key=None):
        """What the head reads, [B, T, D], with the new cache and the trace."""
        L = len(self.layers)
        refuse_unknown_clamps(intervention, self.clamp_sites, L)
        trace = {"intervention": intervention.describe()} if intervention else {}
        first = cache[0][0] if self.slots and cache is not None else None
        positions, after = count_positions(tokens, first, resets, lengths)
        keys = split(key, L + 1)
        x = self.embed(tokens, positions, keys[L])
        for i in range(L):
            y, own = self.runner(i, intervention)(x, keys[i])
            x = clamp_output(x, y, intervention, i)
            trace |= {f"block{i:02d}/{name}": value for name, value in own.items()}
        return self.finish(x, trace, intervention), [[after] * len(self.slots) for _ in range(L)], trace

    def runner(self, i: int, intervention: Intervention | None):
        clamps = () if intervention is None else tuple(c for c in intervention.clamps if c.block in (None, i))
        return partial(super().runner(i, intervention), clamps=clamps)

    def finish(self, x: mx.array, trace: dict[str, Any], intervention: Intervention | None) -> mx.array:
        return x


class PositionedPrecursor(Precursor):
    """Token and learned position, pre-norm residual blocks, a final norm, a tied head: v2 and v3."""

    slots = ("position",)  # [B] int32, tokens since the document began
    fp32 = ("omega", "spread")
    clamp_sites = ("output",)

    def __init__(self, config, key: mx.array):
        super().__init__(config)
        V, D = config.vocab_size, config.d_model
        k_tokens, k_positions = mx.random.split(key)
        self.embedding = nn.Embedding(V, D)
        scale = 1.0 if config.embedding_init == "legacy" else 0.02
        self.embedding.weight = scale * mx.random.normal((V, D), key=k_tokens)
        self.positions = 0.02 * mx.random.normal((config.max_length, D), key=k_positions)
        self.norm = nn.LayerNorm(D, config.norm_eps)

    @property
    def layers(self) -> list[nn.Module]:
        return self.blocks

    def embed(self, tokens: mx.array, positions: mx.array, key: mx.array | None) -> mx.array:
        """Beyond `max_length` the last position stands for all that follow."""
        return self.embedding(tokens) + self.positions[mx.minimum(positions, self.args.max_length - 1)]

    def finish(self, x: mx.array, trace: dict[str, Any], intervention: Intervention | None) -> mx.array:
        return self.norm(x)

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        return self.embedding.as_linear(hidden)


class Block(nn.Module):
    """x + drop(bank(norm x)), then x + drop(mlp(norm x)), the mlp of width 4 D with GELU.

    bank: called `bank(z, key, clamps) -> y, trace`.
    """

    def __init__(self, config, bank: nn.Module, key: mx.array, dropout: float = 0.0):
        super().__init__()
        D = config.d_model
        k_up, k_down = mx.random.split(key)
        self.bank_norm = nn.LayerNorm(D, config.norm_eps)
        self.bank = bank
        self.mlp_norm = nn.LayerNorm(D, config.norm_eps)
        self.up, self.down = uniform_linear(k_up, D, 4 * D), uniform_linear(k_down, 4 * D, D)
        self._dropout = dropout

    def __call__(self, x, key=None, clamps=()):
        keys = split(key, 4)
        y, trace = self.bank(self.bank_norm(x), keys[0], clamps)
        x = x + self.drop(y, keys[1])
        h = self.drop(nn.gelu(self.up(self.mlp_norm(x))), keys[2])
        return x + self.drop(self.down(h), keys[3]), trace

    def drop(self, x: mx.array, key: mx.array | None) -> mx.array:
        return dropout(x, self._dropout, key) if self.training else x


def uniform_linear(key: mx.array, inputs: int, outputs: int) -> nn.Linear:
    """A projection with weights and biases uniform in +-1/sqrt(inputs): PyTorch's start, which they had."""
    layer, (k_weight, k_bias) = nn.Linear(inputs, outputs), mx.random.split(key)
    bound = inputs**-0.5
    layer.weight = mx.random.uniform(-bound, bound, (outputs, inputs), key=k_weight)
    layer.bias = mx.random.uniform(-bound, bound, (outputs,), key=k_bias)
    return layer


def dropout(x: mx.array, rate: float, key: mx.array | None) -> mx.array:
    """x with a share `rate` of its entries 0 and the others scaled up to keep the mean."""
    return x if rate == 0 else x * mx.random.bernoulli(1 - rate, x.shape, key=key) / (1 - rate)


def split(key: mx.array | None, count: int) -> list[mx.array | None]:
    """Keys to draw with, or as many None, which stand for MLX's own stream."""
    return [None] * count if key is None else list(mx.random.split(key, count))


def count_positions(
    tokens: mx.array, first: mx.array | None, resets: mx.array | None, lengths: mx.array | None
) -> tuple[mx.array, mx.array]:
    """How many tokens of its document stand before each token, and before the one after each row's last.

    Shapes: tokens [B, T]; first [B] int32, zeros when None; resets [B, T]; lengths [B] -> [B, T], [B] int32.
    """
    B, T = tokens.shape
    first = mx.zeros((B,), mx.int32) if first is None else first
    t = mx.arange(T, dtype=mx.int32)
    positions = first[:, None] + t
    if resets is not None:
        began = mx.cummax(mx.where(resets, t, -1), axis=1)
        positions = mx.where(began < 0, positions, t - began)
    if lengths is None:
        return positions, positions[:, -1] + 1
    ends = mx.concatenate([first[:, None], positions + 1], axis=1)
    return positions, mx.take_along_axis(ends, mx.clip(lengths, 0, T)[:, None], axis=1).squeeze(1)
