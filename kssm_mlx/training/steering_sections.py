"""The sections of a recipe that watch and steer a run: groups, monitors, control, freeze, clamp, noise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kssm_mlx.errors import nearest
from kssm_mlx.oscillators import zones


class Section(BaseModel):
    """A table of a recipe."""

    # Strict: `steps = "12"`, `clip = true` and `learning_rate = inf` are slips, not numbers.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not low < high:
        raise ValueError(f"a range goes from the lower to the higher number, got {list(value)}")
    return value


# An R, a U and their product are shares. Ranges come from TOML, where a list is the only tuple.
Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[float, Field(ge=0)]
Shares = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_rising)]
Bounds = Annotated[tuple[Size, Size], Field(strict=False), AfterValidator(_rising)]


class Group(Section):
    """Of one component: learning_rate multiplies that of the run, weight_decay takes the place of it."""

    learning_rate: float = Field(1.0, ge=0)
    weight_decay: float | None = Field(None, ge=0)


class Patience(Section):
    """When the held-out loss ends the run or lowers its learning rate: see early_stopping.py.

    intervals: patience in intervals between improvements, 3 to 5; cut: what the learning rate is multiplied
    with when it is spent; cuts: how often, before the run stops. plateau: share of the run without an
    improvement, overfit: rise above the best, that stop it. improvement: the least fall that counts.
    """

    intervals: float = Field(4.0, gt=0)
    cut: float = Field(0.6, gt=0, lt=1)
    cuts: int = Field(2, ge=0)
    plateau: float = Field(0.2, gt=0, le=1)
    overfit: float = Field(0.05, gt=0)
    improvement: float = Field(0.005, ge=0, lt=1)


class Monitor(Section):
    """profile: the tone map, and target: the range of R (and U) aimed for, of oscillators/zones.py.

    product: a range of R·U that belongs to the target too. A run has one of each. patience: rules on the
    held-out loss that act; none by default.
    """

    profile: str = "C"
    target: str = "v3"
    product: Shares | None = None
    patience: Patience | None = None

    @model_validator(mode="after")
    def _possible(self):
        for name, known in ((self.profile, zones.PROFILES), (self.target, zones.TARGETS)):
            if name not in known:
                raise ValueError(
                    f"unknown name {name!r}; it is one of {', '.join(known)}{nearest(name, known)}"
                )
        R, U, _ = zones.TARGETS[self.target]
        if self.product and not zones.feasible(R, U or (0.0, 1.0), self.product):
            raise ValueError(
                f"target {self.target!r} (R in {R}, U in {U or (0.0, 1.0)}) never has R·U in {self.product}; "
                "take another target, or leave product out"
            )
        return self


class Control(Section):
    """A rule of training/controllers.py and how hard it turns the knobs.

    R, U: the ranges to stay in, the rule's own by default. BRAKE takes the share `brake` off the coupling and
    sets a noise of `noise_gain` times what is too much, at most `noise_limit`; BOOST and ESCAPE add the share
    `boost`; the coupling stays within bounds.
    label_only: name the action, turn nothing. persist = false: begin every step from the knobs the run began
    with, as a controller did whose knob the optimizer restored.
    """

    rule: Literal["drift", "dual", "hook"]
    R: Shares | None = None
    U: Shares | None = None
    brake: float = Field(0.05, ge=0, lt=1)
    boost: float = Field(0.1, ge=0)
    noise_gain: float = Field(0.1, ge=0)
    noise_limit: float = Field(0.2, ge=0)
    bounds: Bounds = (0.1, 5.0)
    label_only: bool = False
    persist: bool = True


class Freeze(Section):
    """units: which of the `of` equal parts of every mixer (models/interventions/freeze_units.py) are frozen.

    mode: "param" holds their routing and slack; "route" also lets nothing learn through their routing;
    "ablate" also silences them; "coarse" (legacy) freezes whole mixers. shared: what no unit has for itself.
    head: the head and the final norm are frozen too, so that they cannot undo a clamp before them.
    """

    units: list[int] = Field([1, 2, 3], min_length=1)
    of: int = Field(4, ge=1)
    mode: Literal["param", "route", "ablate", "coarse"] = "param"
    shared: Literal["train", "freeze"] = "train"
    head: bool = False


class Clamp(Section):
    """An amplitude clamp (models/interventions/spec.py) to `target`, a number or one per unit.

    scope "frozen" belongs to weights, not to a recipe: it is for evaluations (experiments/clamps.py), and a
    mean-preserving clamp is trained with the statistics of its batch.
    """

    site: Literal["S0", "S1", "S2", "S3"] = "S2"
    kind: Literal["naive", "mean-preserving"] = "naive"
    scope: Literal["token", "batch"] = "token"
    target: float | list[float]
    of: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _possible(self):
        if self.kind == "mean-preserving" and self.scope == "token":
            raise ValueError('one vector has no mean over tokens; set clamp.scope = "batch"')
        if isinstance(self.target, list) and len(self.target) != self.of:
            raise ValueError(f"{len(self.target)} targets for clamp.of = {self.of} units; give one each")
        if min(self.target if isinstance(self.target, list) else [self.target]) < 0:
            raise ValueError(f"clamp.target is a size, which is not below 0, got {self.target}")
        return self


class Noise(Section):
    """Gaussian noise of `level` times `rms`, a number or one per unit: the root mean square of what is there
    without noise, as `models.interventions.calibration.calibrate` measures it. New in every step, the same in
    every evaluation.
    """

    site: Literal["S2", "S3", "S4"] = "S4"
    level: float = Field(gt=0)
    rms: float | list[float] = 1.0
    of: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _possible(self):
        if isinstance(self.rms, list) and len(self.rms) != self.of:
            raise ValueError(f"{len(self.rms)} rms for noise.of = {self.of} units; give one each")
        return self
