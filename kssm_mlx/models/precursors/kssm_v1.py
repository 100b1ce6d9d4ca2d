"""K-SSM v1, faithful: a bigram model whose only path from token to logits are moments of oscillators.

    theta = omega + W e(token) + b,  one mean-field step with K = 2,
    [Re Z_n, Im Z_n, |Z_n|], n = 1 ... 8  ->  24 -> 128 -> 128 (GELU)  ->  V

Nothing mixes over time: it can reach the bigram entropy of a text and no less. The pairwise coupling matrix
is declared and never read, as published (C7 names it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import Clamp, mask_clamped, refuse_counts_below_one
from kssm_mlx.models.precursors.base import Precursor, uniform_linear
from kssm_mlx.models.precursors.oscillator_bank import (
    evenly_spread,
    hold_coherence,
    observe_bank,
    pull_together,
)
from kssm_mlx.oscillators.order import harmonics, mean_phase, modulus


@dataclass(frozen=True)
class KSSMv1Config:
    """K: the coupling, a constant here."""

    vocab_size: int
    d_model: int = 128
    n_oscillators: int = 64
    harmonics: int = 8
    K: float = 2.0
    model_type: str = "kssm_v1"

    def __post_init__(self):
        refuse_counts_below_one(self)


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"d_model": 32, "n_oscillators": 16, "harmonics": 4},
    "s": {},  # as published
    "m": {"d_model": 256, "n_oscillators": 128, "harmonics": 16},
    "l": {"d_model": 512, "n_oscillators": 256, "harmonics": 32},
}


def preset(size: str, vocab_size: int, context: int) -> KSSMv1Config:
    """The configuration behind one word; `context` means nothing to a model of single tokens."""
    del context
    return KSSMv1Config(vocab_size=vocab_size, **SIZES[size])


class Bank(nn.Module):
    """From an embedding to what the head reads. Shapes: x [B, T, D] -> [B, T, D], trace."""

    def __init__(self, config: KSSMv1Config, key: mx.array):
        super().__init__()
        D, N, M = config.d_model, config.n_oscillators, config.harmonics
        keys = mx.random.split(key, 4)
        self.omega = evenly_spread(N)
        self.coupling = 0.1 * mx.random.normal((N, N), key=keys[0])  # never read
        self.to_frequency = uniform_linear(keys[1], D, N)
        self.readout, self.dense = uniform_linear(keys[2], 3 * M, D), uniform_linear(keys[3], D, D)
        self._K, self._harmonics = config.K, config.harmonics

    def __call__(self, x, key=None, clamps=()):
        del key
        theta = self.omega + self.to_frequency(x).astype(mx.float32)
        theta = force_coherence(pull_together(theta, self._K), clamps)
        re, im = hold_coherence(harmonics(theta, self._harmonics), clamps)
        features = mx.flatten(mx.stack([re, im, modulus(re, im)], axis=-1), -2).astype(x.dtype)
        h = nn.gelu(self.dense(nn.gelu(self.readout(features))))
        return h, observe_bank(theta, re[..., :1], im[..., :1])


def force_coherence(theta: mx.array, clamps: tuple[Clamp, ...]) -> mx.array:
    """F psi + (1 - F) theta where a clamp on "forced_R" says F: the intervention as published.

    F is not the R that results, and neither are angles mixed across the cut at pi; the trace tells what R
    became, and a clamp on "R" holds it exactly.
    Shapes: [B, T, N].
    """
    for clamp in (c for c in clamps if c.site == "forced_R"):
        F = mx.array(clamp.value, theta.dtype)
        mixed = F * mean_phase(theta)[..., None] + (1 - F) * theta
        theta = mx.where(mask_clamped(clamp, 0, theta.shape[1], 1), mixed, theta)
    return theta


class KSSMv1(Precursor):
    """The language model: embedding, one bank, head."""

    slots = ()
    fp32 = ("omega",)
    no_quant = ("to_frequency", "readout")
    clamp_sites = ("R", "forced_R")
    no_decay = ("omega", "bias")

    def __init__(self, config: KSSMv1Config, seed: int = 0):
        super().__init__(config)
        keys = mx.random.split(mx.random.key(seed), 3)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.embedding.weight = mx.random.normal((config.vocab_size, config.d_model), key=keys[0])
        self.blocks = [Bank(config, keys[1])]
        self.head = uniform_linear(keys[2], config.d_model, config.vocab_size)

    def finish(self, x: mx.array) -> mx.array:
        return x
