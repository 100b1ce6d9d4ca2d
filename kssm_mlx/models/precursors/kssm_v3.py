"""K-SSM v3, faithful: "bistable" by name, a table of token and position by construction.

    z = LN(x),  p = W_p z + b_p = (a ... j),  Delta = b g - c f,  u_raw = (d g - c h) / (a g - c e + 1e-6)
    u = clip(u_raw, 0.1, 10),  K = 2 sigmoid(u)
    theta = omega_0 + mean(z),  one mean-field step,  theta <- theta - (|spread| + 1e-5) N(0, 1)
    x <- x + W_r [Re Z_1..M, Im Z_1..M, |Z_1..M|],  x <- x + FFN(LN x)

`variant = "monostable"` is the published control: u = u_raw, everything else alike. Neither has two
attractors: nothing is carried over time, and K sees u alone. Real bistability is an option of the family
`kssm` (`triadic`).

The mean of z is one shift for all oscillators, so R depends on the token through K only, and while u rests on
its floor on nothing but the width of omega_0, which weight decay shrinks where a recipe lets it
(`train.decay = "all"`, `oscillators.decay_null`). Rows i and j of W_p are never read, b and f by the
regulariser only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import refuse_counts_below_one
from kssm_mlx.models.precursors.base import Block, PositionedPrecursor, uniform_linear
from kssm_mlx.models.precursors.oscillator_bank import (
    evenly_spread,
    hold_coherence,
    observe_bank,
    pull_together,
)
from kssm_mlx.models.recurrent import orthogonal
from kssm_mlx.oscillators.order import harmonics, modulus


@dataclass(frozen=True)
class KSSMv3Config:
    """noise: "training" draws it in training only; "always", as published, in evaluation as well.

    embedding_init: "legacy" is N(0, 1) beside a tied head, with which a fresh model copies its input.
    """

    vocab_size: int
    d_model: int = 384
    n_layers: int = 6
    n_oscillators: int = 192
    harmonics: int = 32
    max_length: int = 1024
    variant: Literal["bistable", "monostable"] = "bistable"
    u_floor: float = 0.1
    u_ceiling: float = 10.0
    noise: Literal["training", "always", "off"] = "training"
    embedding_init: Literal["small", "legacy"] = "small"
    norm_eps: float = 1e-5
    model_type: str = "kssm_v3"

    def __post_init__(self):
        refuse_counts_below_one(self)
        if not self.u_floor <= self.u_ceiling:
            raise ConfigError(
                f"model.u_floor {self.u_floor} is above u_ceiling {self.u_ceiling}; u is clipped to both"
            )


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"d_model": 32, "n_layers": 2, "n_oscillators": 32, "harmonics": 8, "max_length": 64},
    "s": {"d_model": 128, "n_layers": 3, "n_oscillators": 64, "harmonics": 16, "max_length": 256},
    "m": {},  # as published
    "l": {"d_model": 512, "n_layers": 8, "n_oscillators": 256, "harmonics": 32, "max_length": 1024},
}


def preset(size: str, vocab_size: int, context: int) -> KSSMv3Config:
    """The configuration behind one word; a longer `context` gets the positions it needs."""
    values = {"max_length": KSSMv3Config.max_length, **SIZES[size]}
    return KSSMv3Config(vocab_size=vocab_size, **{**values, "max_length": max(values["max_length"], context)})


class Bank(nn.Module):
    """N oscillators whose coupling the token sets. Shapes: z [B, T, D] -> [B, T, D], trace."""

    def __init__(self, config: KSSMv3Config, key: mx.array):
        super().__init__()
        D, N, M = config.d_model, config.n_oscillators, config.harmonics
        k_parameters, k_readout = mx.random.split(key)
        self.omega = evenly_spread(N)
        self.spread = mx.full((1,), 0.2)
        self.to_parameters = nn.Linear(D, 10)
        self.to_parameters.weight = orthogonal(k_parameters, 10, D)
        self.to_parameters.bias = mx.full((10,), 0.5)
        self.readout = uniform_linear(k_readout, 3 * M, D)
        self._config = config

    def __call__(self, z, key=None, clamps=()):
        config = self._config
        Delta, u_raw = solve_fixed_points(self.to_parameters(z).astype(mx.float32))
        u = mx.clip(u_raw, config.u_floor, config.u_ceiling) if config.variant == "bistable" else u_raw
        K = 2 * mx.sigmoid(u)
        shift = mx.mean(z.astype(mx.float32), axis=-1, keepdims=True)
        theta = pull_together(self.omega + shift, K)
        if config.noise == "always" or (config.noise == "training" and self.training):
            theta = theta - (mx.abs(self.spread) + 1e-5) * mx.random.normal(theta.shape, key=key)
        re, im = hold_coherence(harmonics(theta, config.harmonics), clamps)
        y = self.readout(mx.concatenate([re, im, modulus(re, im)], axis=-1).astype(z.dtype))
        trace = observe_bank(theta, re[..., :1], im[..., :1])
        return y, {**trace, "K": K, "u": u, "u_raw": u_raw, "delta": Delta}


def solve_fixed_points(p: mx.array) -> tuple[mx.array, mx.array]:
    """(Delta, u_raw) of the ten numbers a ... j. Shapes: p [B, T, 10] -> two of [B, T, 1].

    For y = 0 the system a x^2 + b y + c z = d, e x^2 + f y + g z = h has the solution x^2 = u_raw; Delta, as
    published, is the determinant of neither system.
    """
    a, b, c, d, e, f, g, h, _, _ = mx.split(p, 10, axis=-1)
    return b * g - c * f, (d * g - c * h) / (a * g - c * e + 1e-6)


class KSSMv3(PositionedPrecursor):
    """The language model: token and position, blocks, norm, tied head."""

    no_quant = ("to_parameters", "readout")
    clamp_sites = ("R", "output")
    no_decay = ("omega", "spread", "bias", "norm.weight")

    def __init__(self, config: KSSMv3Config, seed: int = 0):
        keys = mx.random.split(mx.random.key(seed), config.n_layers + 1)
        super().__init__(config, keys[0])
        halves = [mx.random.split(key) for key in keys[1:]]
        self.blocks = [Block(config, Bank(config, a), b) for a, b in halves]

    @property
    def stochastic(self) -> bool:
        return self.args.noise != "off"
