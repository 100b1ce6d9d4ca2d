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
feels itself, and then has two attractors (self_coupled.py); without, it forgets what no token renews. With
`expansion`, every channel has N populations, of phases or on spheres, that B_t and C_t write and read
(expanded.py), in Mamba's block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Clamp, Intervention, refuse_counts_below_one
from kssm_mlx.models.expanded import ExpandedPopulations, ExpandedSpheres
from kssm_mlx.models.layers import GatedMLP, RMSNorm, linear
from kssm_mlx.models.populations import Populations
from kssm_mlx.models.recurrent import EVERY_SITE, Stack
from kssm_mlx.models.self_coupled import SelfCoupledPopulations
from kssm_mlx.models.spheres import Spheres, count_features
from kssm_mlx.ops.ball_scan import rotor, turn_ball
from kssm_mlx.ops.conv import causal_conv
from kssm_mlx.ops.elementary import silu
from kssm_mlx.ops.mobius_scan import refuse_negative_curvature
from kssm_mlx.oscillators.planar import Planar


@dataclass(frozen=True)
class KSSMConfig:
    """memory: tokens the slowest populations should span at the start; the training context by default.
    shortest_memory: the same of the fastest; the others lie between, equally spaced in the logarithm. With
    expansion: memory of spheres alone, shortest_memory of those without.

    harmonics: how many powers of z are read out; on the Ott-Antonsen manifold Z_n = z^n, so they are free.
    field: strength of the tokens' field at the start, per component; memory falls steeply with it.
    sphere_field: the same on spheres; by default field, and 0.3 where expansion makes field a scale.
    expansion: populations a channel, 0 for the mixer above; the channels are then the n_groups, or those of
    dimension 2 where there are both kinds, field multiplies what is written and divides what is read, so that
    the linear part does not depend on it, and harmonics are of spheres without expansion alone.
    mlp_hidden: 0 for blocks without an MLP.
    triadic: (K1, K2), pairwise and triadic self-coupling at the start, in units of each population's width;
    bistable for -K2 + 2 sqrt(2 K2) < K1 < 2, such as (1, 8). Serial over time, and so slower.
    controlled: populations have knobs, the gain k_scale of their field and the noise sigma on their phases.
    dimension: 2 for phases, 3 for unit vectors on spheres, whose rotations do not commute (spheres.py);
    dimensions: populations of both kinds side by side, such as {"2": 96, "3": 32}, n_groups in all.
    turning: the share of the populations on spheres that a token turns; rotation: by how much at the start,
    in radians, with expansion in a channel of the usual time step. start: |a| of theirs where a document
    begins. wells: directions that each of them settles in between tokens, going the share `pull` of the way
    to them, at |a| = `reach`, told apart by `sharpness` times the cosine; serial over time.
    embedding_std: of the embedding at the start, 1/sqrt(d_model) unless given; given, a tied head has the
    embedding's own scale, as in Mamba.
    """

    vocab_size: int
    d_model: int = 128
    n_layers: int = 3
    n_groups: int = 128
    expansion: int = 0
    harmonics: int = 2
    conv_width: int = 4
    field: float = 0.3
    mlp_hidden: int = 176
    kappa: float = 1.0
    leaf: Literal["kick", "hold"] = "kick"
    coupling: bool = False
    triadic: tuple[float, float] | None = None
    controlled: bool = False
    dimension: Literal[2, 3] = 2
    dimensions: dict[str, int] | None = None
    turning: float = 1.0
    rotation: float = 0.5
    start: float = 0.9
    sphere_field: float | None = None
    wells: int = 0
    pull: float = 0.05
    sharpness: float = 7.5
    reach: float = 0.9
    memory: int = 128
    shortest_memory: float = 2.0
    tie_embeddings: bool = False
    embedding_std: float | None = None
    norm_eps: float = 1e-6
    model_type: str = "kssm"

    def __post_init__(self):
        refuse_negative_curvature(self.kappa)
        if self.triadic is not None and (self.kappa, self.leaf) != (1, "kick"):
            raise ConfigError("model.triadic has a flow of its own; leave kappa at 1 and leaf at 'kick'")
        if not 0 < self.shortest_memory <= max(self.memory, 4):
            raise ConfigError(
                f"model.shortest_memory is a number of tokens up to model.memory, {self.memory}, got "
                f"{self.shortest_memory:g}"
            )
        for name in ("field", "sphere_field"):
            strength = getattr(self, name)
            if strength is not None and strength < 0:
                raise ConfigError(f"model.{name} is a strength, 0 or more, got {strength:g}")
        if self.embedding_std is not None and not self.embedding_std > 0:
            raise ConfigError(f"model.embedding_std is positive, got {self.embedding_std:g}")
        refuse_counts_below_one(self, "wells", "expansion", "mlp_hidden")
        self._refuse_impossible_expansion()
        if self.dimensions is not None:
            # As in a file: JSON and TOML have no numbers as keys.
            object.__setattr__(self, "dimensions", {str(d): n for d, n in self.dimensions.items()})
        self._refuse_impossible_dimensions()

    def _refuse_impossible_expansion(self) -> None:
        if self.expansion and (self.coupling or self.triadic or self.controlled or self.leaf != "kick"):
            raise ConfigError(
                'model.expansion has populations with leaf = "kick", and no coupling, triadic or controlled'
            )
        if self.expansion and not self.field:
            raise ConfigError("model.field divides what model.expansion reads; it is positive, got 0")

    def _refuse_impossible_dimensions(self) -> None:
        if self.dimension not in (2, 3):
            raise ConfigError(f"model.dimension is 2 (phases) or 3 (spheres), got {self.dimension}")
        mix = self.dimensions
        if mix is not None and (
            set(mix) - {"2", "3"} or min(mix.values()) < 1 or sum(mix.values()) != self.n_groups
        ):
            raise ConfigError(
                f"model.dimensions says how many of the n_groups = {self.n_groups} populations have "
                f"dimension 2 and how many 3, such as {{ 2 = 96, 3 = 32 }}, got {mix}"
            )
        if not self.spheres:
            for name, said in (("wells", self.wells > 0), ("sphere_field", self.sphere_field is not None)):
                if said:
                    raise ConfigError(
                        f"model.{name} is of spheres; it wants model.dimension = 3, or dimensions"
                    )
            return
        if self.expanded_spheres:
            for name, said in (("wells", self.wells > 0), ("sphere_field", self.sphere_field is not None)):
                if said:
                    raise ConfigError(
                        f"model.{name} is of spheres without expansion; it wants model.expansion = 0, or "
                        "model.dimensions, whose spheres are not expanded"
                    )
        else:
            count_features(self.harmonics)  # refuses what there is none of
        if self.leaf != "kick" or self.triadic is not None or self.controlled:
            raise ConfigError('populations on spheres have leaf = "kick", no triadic and no controlled')
        if not (0 < self.pull < 1 and self.sharpness > 0 and 0 < self.reach < 1):
            raise ConfigError(
                f"model.pull and model.reach are between 0 and 1, and sharpness positive, got {self.pull:g}, "
                f"{self.reach:g} and {self.sharpness:g}"
            )
        if not (0 <= self.turning <= 1 and self.rotation >= 0 and 0 <= self.start < 1):
            raise ConfigError(
                "model.turning is a share, 0 to 1, rotation an angle, >= 0 radians, and start a size, "
                f"0 to 1, got {self.turning:g}, {self.rotation:g} and {self.start:g}"
            )

    @property
    def spheres(self) -> int:
        """How many are on spheres, the last ones; channels of them where they are expanded."""
        if self.dimensions is not None:
            return self.dimensions.get("3", 0)
        return self.n_groups if self.dimension == 3 else 0

    @property
    def expanded_spheres(self) -> bool:
        """Whether the spheres are expanded: where there are no phases that are."""
        return self.expansion > 0 and self.discs == 0

    @property
    def channels(self) -> int:
        """Numbers of a token that move the populations."""
        return (self.discs or self.spheres) if self.expansion else self.d_model

    @property
    def phases(self) -> int:
        """How many populations of phases there are."""
        return self.discs * max(self.expansion, 1)

    @property
    def balls(self) -> int:
        """How many populations on spheres there are."""
        return self.spheres * (self.expansion if self.expanded_spheres else 1)

    @property
    def features(self) -> int:
        """Numbers that are read out of each population on a sphere."""
        return count_features(self.harmonics)

    @property
    def discs(self) -> int:
        """How many are of phases, the first ones; channels of them where they are expanded."""
        return self.n_groups - self.spheres


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
    """The populations of phases of one block."""
    D, G, common = (
        config.d_model,
        config.discs,
        {"memory": config.memory, "coupled": coupled, "field": config.field},
    )
    if config.triadic is None:
        made = Populations(key, D, G, kappa=config.kappa, leaf=config.leaf, **common)
    else:
        made = SelfCoupledPopulations(key, D, G, triadic=config.triadic, **common)
    if config.controlled:
        made.add_knobs()
    return made


def spheres(config: KSSMConfig, key: mx.array, coupled: bool) -> Spheres:
    """The populations on spheres of one block."""
    usual = KSSMConfig.field if config.expansion else config.field
    return Spheres(
        key,
        config.channels,
        config.spheres,
        memory=config.memory,
        shortest=config.shortest_memory,
        field=usual if config.sphere_field is None else config.sphere_field,
        kappa=config.kappa,
        coupled=coupled,
        turning=round(config.turning * config.spheres),
        rotation=config.rotation,
        size=config.start,
        wells=config.wells,
        pull=config.pull,
        sharpness=config.sharpness,
        reach=config.reach,
    )


class Mixer(nn.Module):
    """Token mixing: project, short convolution, populations, harmonics read out, gate, project."""

    def __init__(self, config: KSSMConfig, key: mx.array, coupled: bool):
        super().__init__()
        D, W = config.d_model, config.conv_width
        keys = mx.random.split(key, 5)
        self.in_proj = linear(keys[0], D, 2 * D)
        self.conv_weight = W**-0.5 * mx.random.uniform(-1, 1, (D, W), key=keys[1])
        self.conv_bias = mx.zeros((D,))
        read = 0
        if config.discs:
            self.populations = populations(config, keys[2], coupled)
            read += 2 * config.harmonics * config.discs
        if config.spheres:
            self.spheres = spheres(config, mx.random.split(keys[2])[0] if config.discs else keys[2], coupled)
            read += config.features * config.spheres
        self.readout = linear(keys[3], read, D)
        self.skip = mx.ones((D,))
        self.out_proj = linear(keys[4], D, D, std=(2 * config.n_layers * D) ** -0.5)
        self._harmonics, self._counts = config.harmonics, (config.discs, config.spheres)

    @property
    def kinds(self) -> list[Populations | Spheres]:
        """The populations, those of phases first."""
        return [self[name] for name in ("populations", "spheres") if name in self]

    def __call__(self, x, entry, below, clamps, resets, lengths, inside=None):
        """Shapes: x [B, T, D] -> y [B, T, D], new cache entry, what the block above feels, trace."""
        conv_state, *states = entry
        u, gate = mx.split(self.in_proj(x), 2, axis=-1)
        u, conv_state = causal_conv(
            u, self.conv_weight, self.conv_bias, conv_state, resets=resets, lengths=lengths
        )
        u = silu(u)
        valid = None if lengths is None else mx.arange(x.shape[1])[None] < lengths[:, None]
        below = [None] * len(states) if below is None else below
        moved = [
            kind.run(u, under, state, self._harmonics, mine, resets, valid, inside)
            for kind, under, state, mine in zip(
                self.kinds, below, states, split_clamps(clamps, *self._counts), strict=True
            )
        ]
        trace = _side_by_side([m.trace for m in moved])
        features = mx.concatenate([part for m in moved for part in m.features], axis=-1)
        if inside:
            features = _by_population(features, max(self._counts), partial(inside.units, trace=trace))
        y = self.readout(features.astype(x.dtype)) + self.skip * u
        entry = [conv_state, *(m.carried for m in moved)]
        return self.out_proj(y * silu(gate)), entry, tuple(m.above for m in moved), trace


def expanded(config: KSSMConfig, key: mx.array) -> ExpandedPopulations:
    """The expanded populations of one block."""
    common = {"rank": math.ceil(config.d_model / 16), "kappa": config.kappa, "field": config.field}
    if not config.expanded_spheres:
        return ExpandedPopulations(key, config.channels, config.expansion, **common)
    return ExpandedSpheres(
        key,
        config.channels,
        config.expansion,
        memory=config.memory,
        spins=round(config.turning * config.expansion),
        rotation=config.rotation,
        size=config.start,
        **common,
    )


class ExpandedMixer(nn.Module):
    """Mamba's mixer around N populations a channel; beside those of phases there may be lone spheres."""

    def __init__(self, config: KSSMConfig, key: mx.array, coupled: bool):
        super().__init__()
        D, I, W = config.d_model, config.channels, config.conv_width
        keys = mx.random.split(key, 6)
        self.in_proj = linear(keys[0], D, 2 * I, std=(3 * D) ** -0.5)
        self.conv_weight = W**-0.5 * mx.random.uniform(-1, 1, (I, W), key=keys[1])
        self.conv_bias = mx.zeros((I,))
        self["spheres" if config.expanded_spheres else "populations"] = expanded(config, keys[2])
        if config.discs and config.spheres:
            self.spheres = spheres(config, keys[3], coupled)
            self.readout = linear(keys[4], config.features * config.spheres, I)
        self.skip = mx.ones((I,))
        self.out_proj = linear(keys[5], I, D, std=(3 * I * config.n_layers) ** -0.5)
        self._harmonics, self._counts = config.harmonics, (config.phases, config.balls)

    @property
    def expanded(self) -> ExpandedPopulations:
        """Those of which every channel has N."""
        return self["populations" if "populations" in self else "spheres"]

    @property
    def kinds(self) -> list[ExpandedPopulations | Spheres]:
        """The populations, the expanded ones first."""
        return [self[name] for name in ("populations", "spheres") if name in self]

    def __call__(self, x, entry, below, clamps, resets, lengths, inside=None):
        """As `Mixer`; the block above feels nothing of the populations."""
        conv_state, state, *balls = entry
        u, gate = mx.split(self.in_proj(x), 2, axis=-1)
        u, conv_state = causal_conv(
            u, self.conv_weight, self.conv_bias, conv_state, resets=resets, lengths=lengths
        )
        u = silu(u)
        mine, theirs = (*split_clamps(clamps, *self._counts), ())[:2]
        moved = self.expanded.run(u, state, mine, resets, lengths, inside)
        y, entry, trace = moved.y, [conv_state, moved.carried], moved.trace
        if balls:
            valid = None if lengths is None else mx.arange(x.shape[1])[None] < lengths[:, None]
            others = self.spheres.run(u, None, balls[0], self._harmonics, theirs, resets, valid, inside)
            y = y + self.readout(mx.concatenate(others.features, axis=-1).astype(x.dtype))
            entry.append(others.carried)
            trace = _side_by_side([trace, others.trace])
        y = (y + self.skip * u) * silu(gate)
        y = inside.units(y, trace) if inside else y
        return self.out_proj(y.astype(x.dtype)), entry, (), trace


def _side_by_side(traces: list[dict[str, mx.array]]) -> dict[str, mx.array]:
    """One trace of all populations: units after each other where both kinds have a quantity."""
    if len(traces) == 1:
        return traces[0]
    discs, balls = traces
    common = {
        name: mx.concatenate([x, balls[name.removeprefix("mean_")]], -1)
        for name, x in discs.items()
        if name != "state"
    }
    state = mx.concatenate([t["state"].flatten(1) for t in traces], axis=-1)
    return balls | common | {"state": state}


def split_clamps(clamps: tuple[Clamp, ...], discs: int, balls: int) -> list[tuple[Clamp, ...]]:
    """The clamps on each kind of populations that there is, units counted from its first."""
    if not (discs and balls):
        return [clamps]
    return [
        tuple(c for clamp in clamps if (c := _share(clamp, first, count, discs + balls)) is not None)
        for first, count in ((0, discs), (discs, balls))
    ]


def _share(clamp: Clamp, first: int, count: int, total: int) -> Clamp | None:
    """What a clamp holds of the populations first ... first + count - 1 of `total`."""
    if clamp.units is not None and not 0 <= min(clamp.units) <= max(clamp.units) < total:
        raise ConfigError(f"clamp on units {list(clamp.units)}, but {clamp.site} has units 0 to {total - 1}")
    if clamp.site == "tilt" and first == 0:
        if clamp.units is not None and min(clamp.units) < count:
            raise ConfigError(
                f"clamp on the tilt of units {list(clamp.units)}: units below {count} have none"
            )
        return None
    units = (
        None if clamp.units is None else tuple(u - first for u in clamp.units if first <= u < first + count)
    )
    if units == ():
        return None
    value = clamp.value
    if isinstance(value, mx.array) and value.ndim and value.shape[-1] == total:
        value = value[..., first : first + count]
    return replace(clamp, units=units, value=value)


class Block(nn.Module):
    """x + mixer(norm x), then x + mlp(norm x) where there is an MLP."""

    def __init__(self, config: KSSMConfig, key: mx.array, coupled: bool):
        super().__init__()
        k_mixer, k_mlp = mx.random.split(key)
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = (ExpandedMixer if config.expansion else Mixer)(config, k_mixer, coupled)
        if not config.mlp_hidden:
            return
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        out_std = (2 * config.n_layers * config.mlp_hidden) ** -0.5
        self.mlp = GatedMLP(k_mlp, config.d_model, config.mlp_hidden, out_std)

    def __call__(self, x, entry, below, resets, lengths, clamps=(), inside=None):
        # `below` is plain arrays: mx.checkpoint differentiates arrays, and no dataclasses.
        y, entry, z, trace = self.mixer(self.mixer_norm(x), entry, below, clamps, resets, lengths, inside)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)) if "mlp" in self else x, entry, z, trace


class KSSM(Stack):
    """The language model: embedding, blocks, norm, head; `models.base.LanguageModel` is the interface."""

    slots = ("conv", "populations")  # the convolution's last inputs [B, W-1, D], the populations [B, 2, G]
    fp32 = (
        *("omega", "log_gamma", "coupling", "time_step.bias", "dt_proj.bias", "k_scale", "sigma"),
        *("start", "directions", "pull", "sharpness"),
    )
    # What sets the physics, and the readout, are never quantised.
    no_quant = ("field", "time_step", "rotation", "readout", "x_proj", "dt_proj")
    no_decay = (
        "omega",
        "log_gamma",
        "coupling",
        "rotation.weight",
        "start",
        "directions",
        "pull",
        "sharpness",
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
        std = D**-0.5 if config.embedding_std is None else config.embedding_std
        self.embedding.weight = std * mx.random.normal((V, D), key=keys[0])
        self.blocks = [
            Block(config, keys[2 + i], coupled=config.coupling and i > 0) for i in range(config.n_layers)
        ]
        self.norm = RMSNorm(D, config.norm_eps)
        if not config.tie_embeddings:
            # Small, so that the first loss is ln V: the model knows nothing and says so.
            self.head = linear(keys[1], D, V, std=0.1 * D**-0.5)

    @property
    def clamp_sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("R", "psi", *(("tilt",) if self.args.spheres else ()), "output")

    @property
    def act_sites(self) -> tuple[str, ...]:  # type: ignore[override]
        """Of two kinds side by side the units are not equal parts of a vector."""
        return ("S0", "S1", "S4") if self.mixed else EVERY_SITE

    @property
    def mixed(self) -> bool:
        """Whether there are populations of both kinds."""
        return bool(self.args.discs and self.args.spheres)

    def slots_of(self, i: int) -> tuple[str, ...]:
        """States of populations on spheres are `balls` [B, 3, G]."""
        kinds = (("populations", self.args.discs), ("balls", self.args.spheres))
        return ("conv", *(name for name, count in kinds if count))

    @property
    def knobs(self) -> tuple[str, ...]:
        """Names of the arrays [] that controllers turn."""
        each = ("k_scale", "sigma") if self.args.controlled else ()
        return tuple(f"blocks.{i}.mixer.populations.{name}" for i in range(len(self.blocks)) for name in each)

    def runner(self, i: int, intervention: Intervention | None):
        sites = ("R", "psi", "tilt")
        clamps = () if intervention is None else tuple(c for site in sites for c in intervention.of(site, i))
        return partial(super().runner(i, intervention), clamps=clamps)

    def free_states(self, block: int, steps: int, z0: mx.array) -> mx.array:
        """Where the populations of a block stand after `steps` tokens that say nothing: zero field, from z0.

        Shapes: z0 [S, 2, G], or [S, 3, G] on spheres, as in the cache -> the same.
        """
        (populations,), z = self.blocks[block].mixer.kinds, z0
        for start in range(0, steps, QUIET):
            z = populations.advance_state(
                mx.zeros((z.shape[0], min(QUIET, steps - start), self.args.channels)), z
            )
            mx.eval(z)
        return z

    def settle_in_wells(self, block: int, starts: mx.array) -> mx.array:
        """Where the wells of a block take populations, alone. Shapes: starts [S, 3] -> [S, 3, G]."""
        return self.blocks[block].mixer.spheres.settle_in_wells(starts)

    def state_view(self, entry: list) -> mx.array:
        """The order parameters, each population's components side by side. Shapes: -> [B, 2G] or [B, 3G]."""
        return mx.concatenate([state.swapaxes(1, 2).flatten(1) for state in entry[1:]], axis=-1)

    def with_state(self, entry: list, view: mx.array) -> list:
        """An order parameter beyond 1 is put on the unit circle or sphere: R is at most 1."""
        states = []
        for z, _ in self._split_view(view):
            z = z / mx.maximum(1, mx.linalg.norm(z, axis=-1, keepdims=True))
            states.append(z.swapaxes(1, 2))
        return [entry[0], *states]

    def perturb_state(self, view: mx.array, noise: mx.array) -> mx.array:
        """Every population turned by an angle of its own, on spheres about an axis of its own."""
        turned = []
        for (z, d), (angles, _) in zip(self._split_view(view), self._split_view(noise)):
            if d == 2:
                angle = angles[..., 0]
                moved = Planar(z[..., 0], z[..., 1]) * Planar.polar(mx.ones_like(angle), angle)
                turned.append(mx.stack([moved.re, moved.im], axis=-1).flatten(1))
            else:
                rotors = rotor(mx.zeros(angles.shape[:-1]), angles.swapaxes(1, 2))
                turned.append(turn_ball(rotors, z.swapaxes(1, 2)).swapaxes(1, 2).flatten(1))
        return mx.concatenate(turned, axis=-1)

    def _split_view(self, view: mx.array) -> list[tuple[mx.array, int]]:
        """A state view as the states of each kind [B, G, d], with d."""
        discs, balls = self.args.phases, self.args.balls
        parts = ((view[:, : 2 * discs], 2), (view[:, 2 * discs :], 3))
        return [(mx.unflatten(x, 1, (-1, d)), d) for (x, d), count in zip(parts, (discs, balls)) if count]

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        if self.args.tie_embeddings:
            logits = self.embedding.as_linear(hidden)
            # Unscaled, a fresh model would bet on the token it has just read.
            return self.args.d_model**-0.5 * logits if self.args.embedding_std is None else logits
        return self.head(hidden)


def _by_population(features: mx.array, G: int, change) -> mx.array:
    """`change` of features [B, T, 2nG] while those of each population stand side by side."""
    grouped = mx.unflatten(features, -1, (-1, G)).swapaxes(-1, -2)
    return mx.unflatten(change(grouped.flatten(-2)), -1, (G, -1)).swapaxes(-1, -2).flatten(-2)
