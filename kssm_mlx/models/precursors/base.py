"""What K-SSM v1, v2 and v3 share beside their oscillators: blocks that read one token, and nothing before it.

They say so, `memoryless = True`: their reach is 0 tokens, and the position in v2 and v3 is all they know of
what came before. They are kept as published, unread parameters included, for honest comparisons.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.attention import positions
from kssm_mlx.models.base import Intervention
from kssm_mlx.models.layers import LayerNorm
from kssm_mlx.models.precursors.oscillator_bank import bank_step
from kssm_mlx.models.recurrent import Stack
from kssm_mlx.models.transformer import dropout


class Precursor(Stack):
    """A model whose blocks are `block(x, key, clamps) -> x, trace`; all that a cache can hold is a position.

    What goes from block to block beside the stream: the cache entry of each, the key, the R of those before.
    """

    memoryless = True
    oscillator_step = staticmethod(bank_step)

    def enter(self, tokens, cache, resets, lengths, key):
        return self.embed(tokens), ([], key, ())

    def runner(self, i: int, intervention: Intervention | None):
        clamps = () if intervention is None else tuple(c for c in intervention.clamps if c.block in (None, i))
        block = partial(super().runner(i, intervention), clamps=clamps)

        def run(x, entry, carried, resets, lengths):
            entry, key, coherences = carried
            key, own = split(key, 2)
            y, trace = block(x, own)
            return y, entry, (entry, key, (*coherences, trace["R"])), trace

        return run


class PositionedPrecursor(Precursor):
    """Token and learned position, pre-norm residual blocks, a final norm, a tied head: v2 and v3."""

    slots = ("position",)  # [B, 1] int32, where the last token stood in its document
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
        self.norm = LayerNorm(D, config.norm_eps)

    def enter(self, tokens, cache, resets, lengths, key):
        """Beyond `max_length` the last position stands for all that follow."""
        B, T = tokens.shape
        past = mx.full((B, 1), -1) if cache is None or cache[0][0] is None else cache[0][0]
        at = positions(past, resets, lengths, T)
        x = self.embed(tokens) + self.positions[mx.clip(at, 0, self.args.max_length - 1)]
        last = T if lengths is None else lengths[:, None]
        stood = mx.concatenate([past, at], axis=1)
        return x, ([mx.take_along_axis(stood, mx.broadcast_to(last, (B, 1)), axis=1)], key, ())


class Block(nn.Module):
    """x + drop(bank(norm x)), then x + drop(mlp(norm x)), the mlp of width 4 D with GELU.

    bank: called `bank(z, key, clamps) -> y, trace`.
    """

    def __init__(self, config, bank: nn.Module, key: mx.array, dropout: float = 0.0):
        super().__init__()
        D = config.d_model
        k_up, k_down = mx.random.split(key)
        self.bank_norm = LayerNorm(D, config.norm_eps)
        self.bank = bank
        self.mlp_norm = LayerNorm(D, config.norm_eps)
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


def split(key: mx.array | None, count: int) -> list[mx.array | None]:
    """Keys to draw with, or as many None, which stand for MLX's own stream."""
    return [None] * count if key is None else list(mx.random.split(key, count))
