"""K-SSM: a state-space model whose states are Kuramoto populations.

Each block carries G populations of phase oscillators. Population g has natural frequency omega_g and
Lorentzian width gamma_g; the token sets a field h_t and a time step Delta_t; the state z is the population's
order parameter, R e^{i psi}, and moves by the exact disc map of an impulse after free flow:

    a_t = exp((i omega - gamma) Delta_t),   k_t = kick(h_t Delta_t),
    z_t = (a_t z_{t-1} + k_t) / (1 + kappa conj(k_t) a_t z_{t-1})

So R is the state itself, and the forget gate: |dz_t/dz_{t-1}| is a function of R and gamma alone
(mobius.py). kappa = 0 is a complex diagonal linear state-space model with the same parameters.
`leaf = "hold"` integrates a field held constant over Delta_t exactly instead. With `coupling`, block l + 1
feels the populations of block l: a feed-forward network of coupled populations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import (
    Cache,
    Clamp,
    Intervention,
    Output,
    clamp_output,
    continue_in_place,
    held,
    refuse_unknown_clamps,
)
from kssm_mlx.models.layers import GatedMLP, inverse_softplus, linear
from kssm_mlx.ops.conv import causal_conv
from kssm_mlx.ops.elementary import silu, softplus
from kssm_mlx.ops.mobius_scan import (
    after_first,
    disc_scan,
    flow,
    kick,
    mobius_scan,
    refuse_negative_curvature,
)
from kssm_mlx.oscillators.mobius import Disc, derivative, hold_leaf
from kssm_mlx.oscillators.planar import Planar


@dataclass(frozen=True)
class KSSMConfig:
    """memory: tokens the slowest populations should span at the start; the training context by default.

    harmonics: how many powers of z are read out; on the Ott-Antonsen manifold Z_n = z^n, so they are free.
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
    memory: int = 128
    tie_embeddings: bool = False
    norm_eps: float = 1e-6
    model_type: str = "kssm"

    def __post_init__(self):
        refuse_negative_curvature(self.kappa)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and value < 1:
                raise ConfigError(f"model.{field.name} must be at least 1, got {value}")


SIZES = {
    "xs": {"d_model": 64, "n_layers": 2, "n_groups": 64, "mlp_hidden": 96},
    "s": {"d_model": 128, "n_layers": 3, "n_groups": 128, "mlp_hidden": 176},
    "m": {"d_model": 384, "n_layers": 8, "n_groups": 384, "mlp_hidden": 768},
    "l": {"d_model": 768, "n_layers": 16, "n_groups": 1024, "mlp_hidden": 1536, "harmonics": 3},
}


def preset(size: str, vocab_size: int, context: int) -> KSSMConfig:
    """The configuration behind one word; `context` is the training length, the memory to start with."""
    return KSSMConfig(vocab_size=vocab_size, memory=context, **SIZES[size])


class Populations(nn.Module):
    """G Kuramoto populations: frequencies, widths, and what a token does to them.

    Parameters: omega [G] radians per unit time; log_gamma [G]; the field h = W_h u (complex); the time step
    Delta = softplus(W_dt u + b), 1 at the start; the coupling to the block below, K [2, G] (complex).
    """

    def __init__(self, config: KSSMConfig, key: mx.array, coupled: bool):
        super().__init__()
        G, D = config.n_groups, config.d_model
        keys = mx.random.split(key, 4)
        self.omega, self.log_gamma = _spectrum(keys[0], G, config.memory)
        # |h| starts near 0.1: memory falls steeply with the field. The slowest third starts quieter still.
        quiet = mx.where(mx.argsort(mx.argsort(self.log_gamma)) < G // 3, 0.3, 1.0)
        self.field = linear(keys[1], D, 2 * G, std=0.3 * D**-0.5)
        self.field.weight = self.field.weight * mx.concatenate([quiet, quiet])[:, None]
        self.time_step = linear(keys[2], D, G, std=0.0, bias=True)
        self.time_step.bias = inverse_softplus(mx.ones((G,)))
        if coupled:
            self.coupling = mx.zeros((2, G))
        self._kappa, self._leaf = config.kappa, config.leaf

    def drive(self, u: mx.array, below: Planar | None) -> tuple[Planar, mx.array]:
        """Field and time step of each token, fp32. Shapes: u [B, T, D] -> h [B, T, G], Delta [B, T, G]."""
        field = self.field(u).astype(mx.float32)
        h = Planar(*mx.split(field, 2, axis=-1))
        if below is not None and "coupling" in self:
            h = h + Planar(self.coupling[0], self.coupling[1]) * below
        return h, softplus(self.time_step(u).astype(mx.float32))

    def evolve(
        self,
        h: Planar,
        dt: mx.array,
        z0: Planar | None,
        clamps: tuple[Clamp, ...] = (),
        resets: mx.array | None = None,
        valid: mx.array | None = None,
    ) -> Planar:
        """States after every token. Shapes: h, dt, z [B, T, G]; resets, valid [B, T] bool."""
        step = self._steps(h, dt, resets, valid)
        if not clamps:
            return step(0, h.shape[1], z0)
        return _clamped_states(step, clamps, z0, h)

    def _steps(self, h: Planar, dt: mx.array, resets: mx.array | None, valid: mx.array | None):
        """(start, stop, z0) -> states of those tokens."""
        if self._leaf == "hold":
            maps = _masked_maps(self._hold(h, dt), resets, valid)
            return lambda i, j, z0: disc_scan(Disc(*(m.map(lambda x: x[:, i:j]) for m in maps)), z0)
        gamma = mx.exp(self.log_gamma)
        a, k = flow(gamma * dt, self.omega * dt), kick(h * dt, self._kappa)
        a, k = _masked_kicks(a, k, resets, valid)
        return lambda i, j, z0: mobius_scan(
            a.map(lambda x: x[:, i:j]), k.map(lambda x: x[:, i:j]), z0, self._kappa
        )

    def _hold(self, h: Planar, dt: mx.array) -> Disc:
        lam = Planar(-mx.exp(self.log_gamma), self.omega).complex
        return Disc(*map(Planar.of, hold_leaf(lam, h.complex, dt, self._kappa)))

    def lyapunov(self, z: Planar, z0: Planar | None, h: Planar, dt: mx.array) -> mx.array:
        """ln |dz_t / dz_{t-1}| per token and population. Shapes: z, h [B, T, G]; z0 [B, G]; dt [B, T, G].

        Of a kick it follows from R alone. Rounding can put R at 1, where ln would be infinite: 6e-8 is the
        least distance fp32 can tell.
        """
        first = Planar.zeros((z.shape[0], z.shape[2])) if z0 is None else z0
        before = Planar(after_first(first.re, z.re), after_first(first.im, z.im))
        if self._leaf == "hold":
            return 0.5 * mx.log(derivative(self._hold(h, dt), before).abs2)
        gamma_tau = mx.exp(self.log_gamma) * dt
        shrunk = mx.exp(-2 * gamma_tau) * before.abs2
        r2_after, r2_before = (mx.minimum(self._kappa * r2, 1 - 6e-8) for r2 in (z.abs2, shrunk))
        return -gamma_tau + mx.log1p(-r2_after) - mx.log1p(-r2_before)


class Mixer(nn.Module):
    """Token mixing: project, short convolution, populations, harmonics read out, gate, project."""

    def __init__(self, config: KSSMConfig, key: mx.array, coupled: bool):
        super().__init__()
        D, G, W = config.d_model, config.n_groups, config.conv_width
        keys = mx.random.split(key, 5)
        self.in_proj = linear(keys[0], D, 2 * D)
        self.conv_weight = W**-0.5 * mx.random.uniform(-1, 1, (D, W), key=keys[1])
        self.conv_bias = mx.zeros((D,))
        self.populations = Populations(config, keys[2], coupled)
        self.readout = linear(keys[3], 2 * G * config.harmonics, D)
        self.skip = mx.ones((D,))
        self.out_proj = linear(keys[4], D, D, std=(2 * config.n_layers * D) ** -0.5)
        self._harmonics = config.harmonics

    def __call__(self, x, entry, below, clamps, resets, lengths):
        """Shapes: x [B, T, D] -> y [B, T, D], new cache entry, states Planar [B, T, G], trace."""
        conv_state, z0 = entry[0], _state(entry[1])
        u, gate = mx.split(self.in_proj(x), 2, axis=-1)
        u, conv_state = causal_conv(
            u, self.conv_weight, self.conv_bias, conv_state, resets=resets, lengths=lengths
        )
        u = silu(u)
        valid = None if lengths is None else mx.arange(x.shape[1])[None] < lengths[:, None]
        h, dt = self.populations.drive(u, below)
        in_state = tuple(c for c in clamps if c.where == "state")
        z = free = self.populations.evolve(h, dt, z0, in_state, resets, valid)
        for clamp in clamps:
            z = clamp_states(z, clamp, clamp.value, 0)
        harmonics = [z**n for n in range(1, self._harmonics + 1)]
        features = mx.concatenate([part for zn in harmonics for part in (zn.re, zn.im)], axis=-1)
        y = self.readout(features.astype(x.dtype)) + self.skip * u
        carried = mx.stack([free.re[:, -1], free.im[:, -1]], axis=1)
        trace = {
            "R": mx.sqrt(z.abs2),
            "psi": mx.arctan2(z.im, z.re),
            "h": mx.sqrt(h.abs2),
            "dt": dt,
            "lyapunov": self.populations.lyapunov(free, z0, h, dt),
            "state": carried,
        }
        return self.out_proj(y * silu(gate)), [conv_state, carried], z, trace


class Block(nn.Module):
    """x + mixer(norm x), then x + mlp(norm x)."""

    def __init__(self, config: KSSMConfig, key: mx.array, coupled: bool):
        super().__init__()
        k_mixer, k_mlp = mx.random.split(key)
        self.mixer_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mixer(config, k_mixer, coupled)
        self.mlp_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        out_std = (2 * config.n_layers * config.mlp_hidden) ** -0.5
        self.mlp = GatedMLP(k_mlp, config.d_model, config.mlp_hidden, out_std)

    def __call__(self, x, entry, below, clamps, resets, lengths):
        # `below` is a plain pair of arrays: mx.checkpoint differentiates arrays, and no dataclasses.
        below = None if below is None else Planar(*below)
        y, entry, z, trace = self.mixer(self.mixer_norm(x), entry, below, clamps, resets, lengths)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), entry, (z.re, z.im), trace


class KSSM(nn.Module):
    """The language model: embedding, blocks, norm, head; `models.base.LanguageModel` is the interface."""

    model_type = "kssm"
    clamp_sites = ("R", "psi", "output")
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
        super().__init__()
        self.args = config
        self.checkpoint_blocks = False
        keys = mx.random.split(mx.random.key(seed), config.n_layers + 2)
        V, D = config.vocab_size, config.d_model
        self.embedding = nn.Embedding(V, D)
        self.embedding.weight = D**-0.5 * mx.random.normal((V, D), key=keys[0])
        self.blocks = [
            Block(config, keys[2 + i], coupled=config.coupling and i > 0) for i in range(config.n_layers)
        ]
        self.norm = nn.RMSNorm(D, config.norm_eps)
        if not config.tie_embeddings:
            # Small, so that the first loss is ln V: the model knows nothing and says so.
            self.head = linear(keys[1], D, V, std=0.1 * D**-0.5)

    def __call__(self, tokens: mx.array, cache: Cache | None = None) -> mx.array:
        return continue_in_place(self, tokens, cache)

    def forward(
        self,
        tokens: mx.array,
        cache: Cache | None = None,
        intervention: Intervention | None = None,
        *,
        resets: mx.array | None = None,
        lengths: mx.array | None = None,
    ) -> Output:
        """Shapes: tokens [B, T] int -> logits [B, T, V], new cache, trace `"block00/R"` [B, T, G], ..."""
        hidden, new, trace = self.hidden(tokens, cache, intervention, resets=resets, lengths=lengths)
        return Output(self.project(hidden), new, trace)

    def hidden(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        """What the head reads, [B, T, D], with the new cache and the trace."""
        refuse_unknown_clamps(intervention, self.clamp_sites, len(self.blocks))
        x, below, new = self.embedding(tokens), None, []
        trace = {"intervention": intervention.describe()} if intervention else {}
        for i, block in enumerate(self.blocks):
            clamps = _state_clamps(intervention, i)
            entry = [None, None] if cache is None else [cache[i][0], cache[i][1]]
            run = nn.utils.checkpoint(block) if self.checkpoint_blocks else block
            y, entry, below, own = run(x, entry, below, clamps, resets, lengths)
            x = clamp_output(x, y, intervention, i)
            new.append(entry)
            trace |= {f"block{i:02d}/{name}": value for name, value in own.items()}
        return self.norm(x), new, trace

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        if self.args.tie_embeddings:
            # Unscaled, a fresh model would bet on the token it has just read.
            return self.args.d_model**-0.5 * self.embedding.as_linear(hidden)
        return self.head(hidden)

    def make_cache(self) -> Cache:
        """One entry per block: the convolution's last inputs [B, W-1, D] and the populations [B, 2, G]."""
        return [[None, None] for _ in self.blocks]

    @property
    def layers(self) -> list[nn.Module]:
        return self.blocks

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return weights

    @property
    def cast_predicate(self):
        """Names that keep fp32 under a bf16 cast: frequencies, widths, couplings and the time step's bias."""
        keep = ("omega", "log_gamma", "coupling", "time_step.bias")
        return lambda path: not path.endswith(keep)

    @property
    def quant_predicate(self):
        """Quantise the wide projections; field, time step and readout set the physics and stay."""
        keep = ("field", "time_step", "readout")
        return lambda path, module: not path.endswith(keep)


def _spectrum(key: mx.array, G: int, memory: int) -> tuple[mx.array, mx.array]:
    """omega uniform in [0, pi/2], half of them a tenth of that; gamma log-spaced 1/memory ... 1/2, mixed."""
    k_omega, k_half, k_order = mx.random.split(key, 3)
    omega = mx.random.uniform(0, math.pi / 2, (G,), key=k_omega)
    omega = omega * mx.where(mx.random.permutation(G, key=k_half) % 2 == 0, 0.1, 1.0)
    log_gamma = mx.linspace(-math.log(max(memory, 4)), math.log(0.5), G)
    return omega, log_gamma[mx.random.permutation(G, key=k_order)]


def _state(packed: mx.array | None) -> Planar | None:
    return None if packed is None else Planar(packed[:, 0], packed[:, 1])


def _masked_kicks(a: Planar, k: Planar, resets, valid) -> tuple[Planar, Planar]:
    """A reset forgets (a = 0); padding does nothing (a = 1, k = 0)."""
    if resets is not None:
        a = a * (1 - resets.astype(mx.float32))[..., None]
    if valid is not None:
        v = valid[..., None]
        a = Planar(mx.where(v, a.re, 1.0), mx.where(v, a.im, 0.0))
        k = k.map(lambda x: mx.where(v, x, 0.0))
    return a, k


def _masked_maps(m: Disc, resets, valid) -> Disc:
    """The same for general maps: a reset keeps q alone; padding is the identity."""
    q, r, d = m
    if resets is not None:
        keep = (1 - resets.astype(mx.float32))[..., None]
        r, d = r * keep, d * keep
    if valid is not None:
        v = valid[..., None]
        q, r = (x.map(lambda y: mx.where(v, y, 0.0)) for x in (q, r))
        d = Planar(mx.where(v, d.re, 1.0), mx.where(v, d.im, 0.0))
    return Disc(q, r, d)


# ---------------------------------------------------------------------------------------------------------
# Interventions.


def _state_clamps(intervention: Intervention | None, block: int) -> tuple[Clamp, ...]:
    if intervention is None:
        return ()
    return (*intervention.of("R", block), *intervention.of("psi", block))


def clamp_states(z: Planar, clamp: Clamp, value: float | mx.array, first: int) -> Planar:
    """Hold R or psi of some populations on the clamp's tokens, exactly, leaving the other one as it is.

    Shapes: z [B, T, G], whose first token has index `first` in the call; value broadcasts to it. At z = 0,
        psi counts as 0.
    """
    R, psi = mx.sqrt(z.abs2), mx.arctan2(z.im, z.re)
    value = mx.broadcast_to(mx.array(value, z.dtype), z.shape)
    new = Planar.polar(value, psi) if clamp.site == "R" else Planar.polar(R, value)
    where = held(clamp, first, z.shape[1], z.shape[2])
    return Planar(mx.where(where, new.re, z.re), mx.where(where, new.im, z.im))


def _clamped_states(step, clamps: tuple[Clamp, ...], z0: Planar | None, like: Planar) -> Planar:
    """States when a clamp acts on the carried state: token by token where it holds, in parallel elsewhere."""
    T = like.shape[1]
    start = min(T, max(0, min(c.start for c in clamps)))
    stop = max(start, min(T, max(T if c.stop is None else c.stop for c in clamps)))
    pieces = [step(0, start, z0)] if start else []
    z = pieces[-1].map(lambda x: x[:, -1]) if pieces else z0
    values = [mx.broadcast_to(mx.array(c.value, like.dtype), like.shape) for c in clamps]
    for t in range(start, stop):
        zt = step(t, t + 1, z)
        for clamp, value in zip(clamps, values):
            zt = clamp_states(zt, clamp, value[:, t : t + 1], t)
        pieces.append(zt)
        z = zt.map(lambda x: x[:, -1])
    if stop < T:
        pieces.append(step(stop, T, z))
    return Planar(
        mx.concatenate([p.re for p in pieces], axis=1), mx.concatenate([p.im for p in pieces], axis=1)
    )
