"""K-SSM: a state-space model whose states are Kuramoto populations.

Each block carries G populations of phase oscillators. Population g has natural frequency omega_g and
Lorentzian width gamma_g; the token sets a field h_t and a time step Delta_t; the state z is the population's
order parameter, R e^{i psi}, and moves by the exact disc map of an impulse after free flow:

    a_t = exp((i omega - gamma) Delta_t),   k_t = kick(h_t Delta_t),
    z_t = (a_t z_{t-1} + k_t) / (1 + kappa conj(k_t) a_t z_{t-1})

So R is the state itself, and the forget gate: |dz_t/dz_{t-1}| is a function of R and gamma alone
(mobius.py). kappa = 0 is a complex diagonal linear state-space model with the same parameters.
`leaf = "hold"` integrates a field held constant over Delta_t exactly instead. With `coupling`, block l + 1
feels the populations of block l: a feed-forward network of coupled populations. With `triadic`, a population
feels itself, and then has two attractors (self_coupled.py); without, it forgets what no token renews.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Intervention, refuse_counts_below_one
from kssm_mlx.models.layers import GatedMLP, RMSNorm, linear
from kssm_mlx.models.populations import Populations, clamp_states
from kssm_mlx.models.recurrent import EVERY_SITE, Stack
from kssm_mlx.models.self_coupled import SelfCoupledPopulations
from kssm_mlx.ops.conv import causal_conv
from kssm_mlx.ops.elementary import silu
from kssm_mlx.ops.mobius_scan import refuse_negative_curvature
from kssm_mlx.oscillators.planar import Planar


@dataclass(frozen=True)
class KSSMConfig:
    """memory: tokens the slowest populations should span at the start; the training context by default.

    harmonics: how many powers of z are read out; on the Ott-Antonsen manifold Z_n = z^n, so they are free.
    triadic: (K1, K2), pairwise and triadic self-coupling at the start, in units of each population's width;
    bistable for -K2 + 2 sqrt(2 K2) < K1 < 2, such as (1, 8). Serial over time, and so slower.
    controlled: populations have knobs, the gain k_scale of their field and the noise sigma on their phases.
    """

    vocab_size: int
    d_model: int = 128
    n_layers: int = 3
    n_groups: int = 128
    harmonics: int = 2
    conv_width: int = 4
    mlp_hidden: int = 176
    kappa: float = 1.0
    leaf: Literal["kick", "hold"] = "kick"
    coupling: bool = False
    triadic: tuple[float, float] | None = None
    controlled: bool = False
    memory: int = 128
    tie_embeddings: bool = False
    norm_eps: float = 1e-6
    model_type: str = "kssm"

    def __post_init__(self):
        refuse_negative_curvature(self.kappa)
        if self.triadic is not None and (self.kappa, self.leaf) != (1, "kick"):
            raise ConfigError("model.triadic has a flow of its own; leave kappa at 1 and leaf at 'kick'")
        refuse_counts_below_one(self)


QUIET = 64  # tokens of `free_states` in memory at once
SIZES: dict[str, dict[str, Any]] = {
    "xs": {"d_model": 64, "n_layers": 2, "n_groups": 64, "mlp_hidden": 96},
    "s": {"d_model": 128, "n_layers": 3, "n_groups": 128, "mlp_hidden": 176},
    "m": {"d_model": 384, "n_layers": 8, "n_groups": 384, "mlp_hidden": 768},
    "l": {"d_model": 768, "n_layers": 16, "n_groups": 1024, "mlp_hidden": 1536, "harmonics": 3},
}


def preset(size: str, vocab_size: int, context: int) -> KSSMConfig:
    """The configuration behind one word; `context` is the training length, the memory to start with."""
    return KSSMConfig(vocab_size=vocab_size, memory=context, **SIZES[size])


def populations(config: KSSMConfig, key: mx.array, coupled: bool) -> Populations:
    """The populations of one block."""
    D, G, common = config.d_model, config.n_groups, {"memory": config.memory, "coupled": coupled}
    if config.triadic is None:
        made = Populations(key, D, G, kappa=config.kappa, leaf=config.leaf, **common)
    else:
        made = SelfCoupledPopulations(key, D, G, triadic=config.triadic, **common)
    if config.controlled:
        made.add_knobs()
    return made


class Mixer(nn.Module):
    """Token mixing: project, short convolution, populations, harmonics read out, gate, project."""

    def __init__(self, config: KSSMConfig, key: mx.array, coupled: bool):
        super().__init__()
        D, G, W = config.d_model, config.n_groups, config.conv_width
        keys = mx.random.split(key, 5)
        self.in_proj = linear(keys[0], D, 2 * D)
        self.conv_weight = W**-0.5 * mx.random.uniform(-1, 1, (D, W), key=keys[1])
        self.conv_bias = mx.zeros((D,))
        self.populations = populations(config, keys[2], coupled)
        self.readout = linear(keys[3], 2 * G * config.harmonics, D)
        self.skip = mx.ones((D,))
        self.out_proj = linear(keys[4], D, D, std=(2 * config.n_layers * D) ** -0.5)
        self._harmonics = config.harmonics

    def __call__(self, x, entry, below, clamps, resets, lengths, inside=None):
        """Shapes: x [B, T, D] -> y [B, T, D], new cache entry, states Planar [B, T, G], trace."""
        conv_state, z0 = entry[0], _state(entry[1])
        u, gate = mx.split(self.in_proj(x), 2, axis=-1)
        u, conv_state = causal_conv(
            u, self.conv_weight, self.conv_bias, conv_state, resets=resets, lengths=lengths
        )
        u = silu(u)
        valid = None if lengths is None else mx.arange(x.shape[1])[None] < lengths[:, None]
        h, dt = self.populations.drive(u, below)
        if inside:
            h, dt = h.map(inside.routing), inside.routing(dt)
        in_state = tuple(c for c in clamps if c.where == "state")
        z = free = self.populations.evolve(h, dt, z0, in_state, resets, valid)
        for clamp in clamps:
            z = clamp_states(z, clamp, clamp.value, 0)
        harmonics = [z**n for n in range(1, self._harmonics + 1)]
        features = mx.concatenate([part for zn in harmonics for part in (zn.re, zn.im)], axis=-1)
        # The free states go on, unless a clamp says "state": a clamped readout must not change the dynamics.
        carried = mx.stack([free.re[:, -1], free.im[:, -1]], axis=1)
        trace = {
            "R": mx.sqrt(z.abs2),
            "psi": mx.arctan2(z.im, z.re),
            "h": mx.sqrt(h.abs2),
            "dt": dt,
            "lyapunov": self.populations.lyapunov(free, z0, h, dt, resets),
            "state": carried,
        }
        if inside:
            features = _by_population(features, h.re.shape[-1], partial(inside.units, trace=trace))
            z = z.map(inside.silenced)  # neither does the block above feel what is silenced
        y = self.readout(features.astype(x.dtype)) + self.skip * u
        return self.out_proj(y * silu(gate)), [conv_state, carried], z, trace


class Block(nn.Module):
    """x + mixer(norm x), then x + mlp(norm x)."""

    def __init__(self, config: KSSMConfig, key: mx.array, coupled: bool):
        super().__init__()
        k_mixer, k_mlp = mx.random.split(key)
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mixer(config, k_mixer, coupled)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        out_std = (2 * config.n_layers * config.mlp_hidden) ** -0.5
        self.mlp = GatedMLP(k_mlp, config.d_model, config.mlp_hidden, out_std)

    def __call__(self, x, entry, below, resets, lengths, clamps=(), inside=None):
        # `below` is a plain pair of arrays: mx.checkpoint differentiates arrays, and no dataclasses.
        below = None if below is None else Planar(*below)
        y, entry, z, trace = self.mixer(self.mixer_norm(x), entry, below, clamps, resets, lengths, inside)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), entry, (z.re, z.im), trace


class KSSM(Stack):
    """The language model: embedding, blocks, norm, head; `models.base.LanguageModel` is the interface."""

    slots = ("conv", "populations")  # the convolution's last inputs [B, W-1, D], the populations [B, 2, G]
    fp32 = ("omega", "log_gamma", "coupling", "time_step.bias", "k_scale", "sigma")
    # Field, time step and readout set the physics and are never quantised.
    no_quant = ("field", "time_step", "readout")
    clamp_sites = ("R", "psi", "output")
    act_sites = EVERY_SITE
    no_decay = (
        "omega",
        "log_gamma",
        "coupling",
        "skip",
        "conv_weight",
        "conv_bias",
        "time_step.weight",
        "bias",
        "norm.weight",
    )

    def __init__(self, config: KSSMConfig, seed: int = 0):
        super().__init__(config)
        keys = mx.random.split(mx.random.key(seed), config.n_layers + 2)
        V, D = config.vocab_size, config.d_model
        self.embedding = nn.Embedding(V, D)
        self.embedding.weight = D**-0.5 * mx.random.normal((V, D), key=keys[0])
        self.blocks = [
            Block(config, keys[2 + i], coupled=config.coupling and i > 0) for i in range(config.n_layers)
        ]
        self.norm = RMSNorm(D, config.norm_eps)
        if not config.tie_embeddings:
            # Small, so that the first loss is ln V: the model knows nothing and says so.
            self.head = linear(keys[1], D, V, std=0.1 * D**-0.5)

    @property
    def knobs(self) -> tuple[str, ...]:
        """Names of the arrays [] that controllers turn."""
        each = ("k_scale", "sigma") if self.args.controlled else ()
        return tuple(f"blocks.{i}.mixer.populations.{name}" for i in range(len(self.blocks)) for name in each)

    def runner(self, i: int, intervention: Intervention | None):
        clamps = () if intervention is None else (*intervention.of("R", i), *intervention.of("psi", i))
        return partial(super().runner(i, intervention), clamps=clamps)

    def free_states(self, block: int, steps: int, z0: mx.array) -> mx.array:
        """Where the populations of a block stand after `steps` tokens that say nothing: zero field, from z0.

        Shapes: z0 [S, 2, G], real and imaginary parts as in the cache -> [S, 2, G].
        """
        populations, z = self.blocks[block].mixer.populations, Planar(z0[:, 0], z0[:, 1])
        for start in range(0, steps, QUIET):
            silence = mx.zeros((z0.shape[0], min(QUIET, steps - start), self.args.d_model))
            z = populations.evolve(*populations.drive(silence, None), z).map(lambda x: x[:, -1])
            mx.eval(z.re, z.im)
        return mx.stack([z.re, z.im], axis=1)

    def state_view(self, entry: list) -> mx.array:
        """The order parameters, real and imaginary parts side by side. Shapes: -> [B, 2G]."""
        return entry[1].swapaxes(1, 2).flatten(1)

    def with_state(self, entry: list, view: mx.array) -> list:
        """An order parameter beyond 1 is put on the unit circle: R is at most 1."""
        z = mx.unflatten(view, 1, (-1, 2))
        z = z / mx.maximum(1, mx.linalg.norm(z, axis=-1, keepdims=True))
        return [entry[0], z.swapaxes(1, 2)]

    def disturbed(self, view: mx.array, noise: mx.array) -> mx.array:
        """Every population turned by an angle of its own: noise of phases."""
        z, angle = mx.unflatten(view, 1, (-1, 2)), mx.unflatten(noise, 1, (-1, 2))[..., 0]
        turned = Planar(z[..., 0], z[..., 1]) * Planar.polar(mx.ones_like(angle), angle)
        return mx.stack([turned.re, turned.im], axis=-1).flatten(1)

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        if self.args.tie_embeddings:
            # Unscaled, a fresh model would bet on the token it has just read.
            return self.args.d_model**-0.5 * self.embedding.as_linear(hidden)
        return self.head(hidden)


def _by_population(features: mx.array, G: int, change) -> mx.array:
    """`change` of features [B, T, 2nG] while those of each population stand side by side."""
    grouped = mx.unflatten(features, -1, (-1, G)).swapaxes(-1, -2)
    return mx.unflatten(change(grouped.flatten(-2)), -1, (G, -1)).swapaxes(-1, -2).flatten(-2)


def _state(packed: mx.array | None) -> Planar | None:
    return None if packed is None else Planar(packed[:, 0], packed[:, 1])
