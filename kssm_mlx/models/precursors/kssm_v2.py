"""K-SSM v2, faithful: a residual stack of oscillator banks over token and position, each position alone.

    z = LN(x),  theta = omega + W_f z,  K = 2 sigmoid(w_k z),  one mean-field step,
    x <- x + drop(W_h [sin theta, cos theta]),  x <- x + FFN(LN x)

The order parameter R is observed and lies on no path to the logits: the residual stream goes past it, and
the aggregator of the layers' R is never read, as published (C7 names it). `forced_R` is the published
intervention: it scales the stream by F / mean R just before a LayerNorm, which undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Clamp, Intervention, mask_clamped, refuse_counts_below_one
from kssm_mlx.models.precursors.base import Block, PositionedPrecursor, split, uniform_linear
from kssm_mlx.models.precursors.oscillator_bank import evenly_spread, observe_bank, pull_together
from kssm_mlx.models.transformer import dropout
from kssm_mlx.oscillators.order import mean_vector, unit_vector


@dataclass(frozen=True)
class KSSMv2Config:
    """embedding_init: "legacy" is N(0, 1) beside a tied head, with which a fresh model copies its input."""

    vocab_size: int
    d_model: int = 256
    n_layers: int = 4
    n_oscillators: int = 128
    max_length: int = 512
    dropout: float = 0.1
    embedding_init: Literal["small", "legacy"] = "small"
    norm_eps: float = 1e-5
    model_type: str = "kssm_v2"

    def __post_init__(self):
        refuse_counts_below_one(self)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is in [0, 1), got {self.dropout}")


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"d_model": 32, "n_layers": 2, "n_oscillators": 16, "max_length": 64},
    # small, medium and large, as published
    "s": {"d_model": 256, "n_layers": 4, "n_oscillators": 128, "max_length": 512},
    "m": {"d_model": 384, "n_layers": 6, "n_oscillators": 192, "max_length": 512},
    "l": {"d_model": 512, "n_layers": 8, "n_oscillators": 256, "max_length": 1024},
}


def preset(size: str, vocab_size: int, context: int) -> KSSMv2Config:
    """The configuration behind one word; a longer `context` gets the positions it needs."""
    values = {**SIZES[size], "max_length": max(SIZES[size]["max_length"], context)}
    return KSSMv2Config(vocab_size=vocab_size, **values)


class Bank(nn.Module):
    """N oscillators, driven and coupled by the token. Shapes: z [B, T, D] -> [B, T, D], trace."""

    def __init__(self, config: KSSMv2Config, key: mx.array):
        super().__init__()
        D, N = config.d_model, config.n_oscillators
        keys = mx.random.split(key, 3)
        self.omega = evenly_spread(N)
        self.to_frequency = uniform_linear(keys[0], D, N)
        self.to_coupling = uniform_linear(keys[1], D, 1)
        self.readout = uniform_linear(keys[2], 2 * N, D)

    def __call__(self, z, key=None, clamps=()):
        del key, clamps
        K = 2 * mx.sigmoid(self.to_coupling(z).astype(mx.float32))
        theta = pull_together(self.omega + self.to_frequency(z).astype(mx.float32), K)
        cos, sin = unit_vector(theta)
        y = self.readout(mx.concatenate([sin, cos], axis=-1).astype(z.dtype))
        return y, {**observe_bank(theta, *mean_vector(cos, sin)), "K": K}


class KSSMv2(PositionedPrecursor):
    """The language model: token and position, blocks, norm, tied head."""

    no_quant = ("to_frequency", "to_coupling", "readout")
    clamp_sites = ("forced_R", "output")
    no_decay = ("omega", "bias", "norm.weight")
    stochastic = True

    def __init__(self, config: KSSMv2Config, seed: int = 0):
        keys = mx.random.split(mx.random.key(seed), config.n_layers + 2)
        super().__init__(config, keys[0])
        halves = [mx.random.split(key) for key in keys[2:]]
        self.blocks = [Block(config, Bank(config, a), b, config.dropout) for a, b in halves]
        self.aggregate = uniform_linear(keys[1], config.n_layers, 1)  # never read

    def enter(self, tokens, cache, resets, lengths, key):
        x, (entry, key, coherences) = super().enter(tokens, cache, resets, lengths, key)
        key, own = split(key, 2)
        return dropout(x, self.args.dropout, own) if self.training else x, (entry, key, coherences)

    def runner(self, i: int, intervention: Intervention | None):
        """Behind the last block acts "forced_R", once, whatever block its clamp names."""
        run = super().runner(i, intervention)
        forced = [c for c in intervention.clamps if c.site == "forced_R"] if intervention else []
        return force_coherence(run, forced) if forced and i == len(self.blocks) - 1 else run


def force_coherence(run, clamps: list[Clamp]):
    """The last block, whose stream is scaled by F / mean R of all blocks, rows and tokens, as published."""

    def run_and_force(x, entry, carried, resets, lengths):
        x, entry, carried, trace = run(x, entry, carried, resets, lengths)
        mean_R = mx.mean(mx.stack(carried[2]))
        for clamp in clamps:
            scaled = x * (clamp.value / mean_R).astype(x.dtype)
            x = mx.where(mask_clamped(clamp, 0, x.shape[1], 1), scaled, x)
        return x, entry, carried, trace

    return run_and_force
