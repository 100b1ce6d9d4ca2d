"""What an experiment does to sizes and units inside a forward pass: hold, disturb, silence, detach, observe.

    S0  the residual stream before the final norm      S2  what a mixer's units put out, before the projection
    S1  after the final norm, what the head reads      S3  the carried state, after every token
    S4  noise only: after S1, before the head          routing  what decides where a unit looks

Acts go into `Intervention.acts` and are carried out by the walk (recurrent.py) and by the mixers of the
families that list the site in `act_sites`. At S2 and S3 the units are equal parts (`of`) of the last axis.
Gradients flow through. A clamp of scope "frozen" is given the statistics of what it meets (`Statistics`), so
each token is treated by itself; "batch" (legacy) takes them from the batch, future and neighbours included.

Source: docs/background/allostasis.md#clamps and #noise-levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import mlx.core as mx

from kssm_mlx.errors import ConfigError

LEAST = 1e-8  # of a size that is divided by; below it nothing is scaled

Site = Literal["S0", "S1", "S2", "S3", "S4"]
BEHIND_ALL = ("S0", "S1", "S4")


class Statistics(NamedTuple):
    """Of vectors x [B, T, U, c] per unit, over batch and time.

    Shapes: norm [U], mean of |x|; mean [U, c]; std [U], of all entries of x - mean; rms [U], of all entries.
    """

    norm: mx.array
    mean: mx.array
    std: mx.array
    rms: mx.array

    @classmethod
    def of(cls, x: mx.array) -> Statistics:
        mean = x.mean(axis=(0, 1))
        spread = mx.square(x - mean).sum(axis=(0, 1, 3)) / max(x[:, :, 0].size - 1, 1)
        return cls(_norm(x).mean(axis=(0, 1))[:, 0], mean, _root(spread), _root(mx.square(x).mean((0, 1, 3))))


@dataclass(frozen=True)
class Act:
    """block: which one; None for all. units: which of the `of` equal parts; None for all of them."""

    block: int | None = None
    units: tuple[int, ...] | None = None
    of: int = 1

    site = ""

    def __post_init__(self):
        if self.of < 1:
            raise ConfigError(f"an act on one of {self.of} equal parts; expected of = 1 or more")
        if self.units is not None and not (self.units and all(0 <= unit < self.of for unit in self.units)):
            raise ConfigError(
                f"an act on units {list(self.units)} of {self.of}; units are 0 to {self.of - 1}, at least one"
            )
        if self.block is not None and self.site in BEHIND_ALL:
            raise ConfigError(f"{self.site} is behind all blocks, got block {self.block}; leave block out")

    @property
    def _describe_place(self) -> str:
        units = "all" if self.units is None else list(self.units)
        return f"block={'all' if self.block is None else self.block} units={units} of {self.of}"

    def describe(self) -> str:
        return f"{type(self).__name__.lower()} {self._describe_place}"


@dataclass(frozen=True)
class Observe(Act):
    """Put S0, S1 and S2 (`units`) of this pass into the trace, as they are after every clamp and before
    noise. Any other act does so as well.
    """


@dataclass(frozen=True)
class Detach(Act):
    """No gradient through the units' routing: it follows what comes in, and nothing learns to steer it."""

    site = "routing"


@dataclass(frozen=True)
class Silence(Act):
    """The units put out nothing: nothing is read from them, and nothing above them feels them (X2)."""

    site = "S2"


@dataclass(frozen=True)
class Amplitude(Act):
    """Hold how large something is.

    kind "naive": x target / |x|, the norm held; "mean-preserving": m + (x - m) target / s, the spread held,
    the mean not. scope: whose norm, mean and spread these are, "token" (naive only: each vector its own),
    "frozen" (of `measured`) or "batch" (legacy). target: a number, or one per unit [of].
    """

    site: Site = "S1"
    kind: Literal["naive", "mean-preserving"] = "naive"
    scope: Literal["token", "frozen", "batch"] = "token"
    target: float | mx.array = 1.0
    measured: Statistics | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.site == "S4":
            raise ConfigError("S4 is for noise; a clamp before the head is at S1")
        if self.scope == "token" and self.kind != "naive":
            raise ConfigError(
                'one vector has no mean over tokens: use scope "frozen" with measured statistics'
            )
        if (self.scope == "frozen") != (self.measured is not None):
            raise ConfigError(f'scope "frozen" and measured statistics go together, got {self.scope!r}')
        if not mx.all(mx.array(self.target) >= 0).item():
            raise ConfigError(f"{self.describe()}: a size is held at 0 or more")

    def describe(self) -> str:
        target = self.target.tolist() if isinstance(self.target, mx.array) else self.target
        return f"{self.kind} {self.scope} clamp at {self.site} to {target} {self._describe_place}"

    def __call__(self, x: mx.array) -> mx.array:
        """Shapes: x [B, T, U, c], fp32."""
        target = mx.array(self.target).reshape(-1, 1)
        if self.kind == "naive":
            return x * _ratio(target, self._norm(x))
        measured = self.measured or Statistics.of(x)
        return measured.mean + (x - measured.mean) * _ratio(target, measured.std[:, None])

    def _norm(self, x: mx.array) -> mx.array:
        if self.scope == "token":
            return _norm(x)
        return (self.measured or Statistics.of(x)).norm[:, None]


@dataclass(frozen=True)
class Noise(Act):
    """Gaussian noise of `level` times `rms` per entry, the clean root mean square of that place.

    rms: a number, or one per unit [of]. In training it is fresh in every step; without a key it is drawn from
    `seed`, so that an evaluation repeats. At S3 of oscillators it turns their phases, by `level` radians.
    """

    site: Literal["S2", "S3", "S4"] = "S4"
    level: float = 0.1
    rms: float | mx.array = 1.0
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.site not in ("S2", "S3", "S4") or not self.level >= 0:
            raise ConfigError(
                f"noise of level {self.level} at {self.site!r}; sites are S2, S3, S4, levels >= 0"
            )

    def describe(self) -> str:
        rms = self.rms.tolist() if isinstance(self.rms, mx.array) else self.rms
        return f"noise at {self.site} of {self.level:g} x rms {rms} {self._describe_place}"

    def draw(self, shape: Sequence[int], key: mx.array | None, block: int = 0) -> mx.array:
        """N(0, level²) of that shape, other numbers for every block."""
        key = mx.random.key(self.seed) if key is None else key
        key = mx.random.split(key, block + 1)[block] if block else key
        return self.level * mx.random.normal(shape, key=key)


def carry_out(x: mx.array, acts: Sequence[Act], key: mx.array | None = None, block: int = 0) -> mx.array:
    """x after these acts, its units the equal parts of the last axis. Shapes: x [B, T, C] -> [B, T, C]."""
    for act in acts:
        y = mx.unflatten(x.astype(mx.float32), -1, (act.of, -1))
        if isinstance(act, Silence):
            new = mx.zeros_like(y)
        elif isinstance(act, Noise):
            new = y + act.draw(y.shape, key, block) * mx.array(act.rms).reshape(-1, 1)
        else:
            new = cast(Amplitude, act)(y)  # the only other act on vectors
        x = mx.where(_mask_of_units(act), new, y).flatten(-2).astype(x.dtype)
    return x


def _mask_of_units(act: Act) -> mx.array:
    """[of, 1] bool."""
    chosen = range(act.of) if act.units is None else act.units
    return mx.array([[unit in chosen] for unit in range(act.of)])


@dataclass(frozen=True)
class Inside:
    """The acts within one block, as its mixer carries them out."""

    acts: tuple[Act, ...]
    key: mx.array | None
    block: int

    def detach_routing(self, x: mx.array, finest: int | None = None) -> mx.array:
        """A routing signal [B, T, C], without gradient in the units that are detached. finest: into how many
        parts it can be divided, C unless given; what a unit has no part of for itself stays as it is.
        """
        for act in self.acts:
            if isinstance(act, Detach) and (finest or x.shape[-1]) % act.of == 0:
                y = mx.unflatten(x, -1, (act.of, -1))
                x = mx.where(_mask_of_units(act), mx.stop_gradient(y), y).flatten(-2)
        return x

    def silence_units(self, x: mx.array) -> mx.array:
        """What the units hand to the block above beside the stream [B, T, C]: of the silent ones, zero."""
        silent = [act for act in self.acts if isinstance(act, Silence) and x.shape[-1] % act.of == 0]
        return carry_out(x, silent)

    def units(self, y: mx.array, trace: dict[str, Any]) -> mx.array:
        """What the units put out [B, T, C], changed; what it was before noise is in the trace as `units`."""
        here = [act for act in self.acts if act.site == "S2"]
        y = carry_out(y, [act for act in here if not isinstance(act, Noise)])
        trace["units"] = y
        return carry_out(y, [act for act in here if isinstance(act, Noise)], self.key, self.block)


def _norm(x: mx.array) -> mx.array:
    """|x| over the last axis, kept; with a gradient at 0 too."""
    return _root(mx.square(x).sum(axis=-1, keepdims=True))


def _root(square: mx.array) -> mx.array:
    return mx.sqrt(mx.maximum(square, LEAST**2))


def _ratio(target: mx.array, size: mx.array) -> mx.array:
    return mx.where(size > LEAST, target / mx.maximum(size, LEAST), 1.0)
