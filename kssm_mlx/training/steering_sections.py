"""The sections of a recipe that watch and steer a run: groups, monitors, control, freeze, clamp, noise."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kssm_mlx.errors import nearest
from kssm_mlx.oscillators import zones


def setting(default: Any, meaning: str, unit: str = "", **limits: Any) -> Any:
    """A key of a recipe: its default (... where it must be given), what it means, its unit, its limits."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit} if unit else None, **limits)


class Section(BaseModel):
    """A table of a recipe."""

    # Strict: `steps = "12"`, `clip = true` and `learning_rate = inf` are slips, not numbers.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _require_rising(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not low < high:
        raise ValueError(f"a range goes from the lower to the higher number, got {list(value)}")
    return value


# An R, a U and their product are shares. Ranges come from TOML, where a list is the only tuple.
Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[float, Field(ge=0)]
Shares = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_require_rising)]
Bounds = Annotated[tuple[Size, Size], Field(strict=False), AfterValidator(_require_rising)]


class Group(Section):
    """Numbers of one component."""

    learning_rate: float = setting(1.0, "times the run's learning rate", unit="factor", ge=0)
    weight_decay: float | None = setting(None, "in place of the run's", ge=0)
    clip_norm: float | None = setting(
        None, "largest norm of this component's gradient, before the global one is taken", gt=0
    )


class Patience(Section):
    """When the held-out loss ends the run or lowers its learning rate (early_stopping.py has the rules)."""

    intervals: float = setting(4.0, "patience; 3 to 5 is usual", unit="mean gaps between improvements", gt=0)
    cut: float = setting(
        0.6, "what the learning rate is multiplied with when patience is spent", unit="factor", gt=0, lt=1
    )
    cuts: int = setting(2, "how often, before the run stops", unit="cuts", ge=0)
    plateau: float = setting(
        0.2, "without an improvement, after which the run stops", unit="share of the run", gt=0, le=1
    )
    overfit: float = setting(
        0.05,
        "rise of the held-out loss above its best that stops the run while the training loss falls",
        unit="share of the best",
        gt=0,
    )
    improvement: float = setting(0.005, "the least fall that counts", unit="share of the best", ge=0, lt=1)


class Monitor(Section):
    """What R and U are called and held against; a run has one profile and one target."""

    profile: str = setting("C", "the tone map, A to E: what ranges of R are called")
    target: str = setting("v3", "the range of R (and U) aimed for")
    product: Shares | None = setting(None, "a range of R·U that belongs to the target too", unit="R·U")
    patience: Patience | None = setting(None, "rules on the held-out loss that act; none by default")

    @model_validator(mode="after")
    def _require_possible(self):
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
    """A rule that turns the model's knobs between steps (training/controllers.py)."""

    rule: Literal["drift", "dual", "hook"] = setting(..., "which rule")
    R: Shares | None = setting(None, "the range of R to stay in; the rule's own by default", unit="R")
    U: Shares | None = setting(None, "the range of U to stay in; the rule's own by default", unit="U")
    brake: float = setting(0.05, "BRAKE takes this off the coupling", unit="share", ge=0, lt=1)
    boost: float = setting(0.1, "BOOST and ESCAPE add this to the coupling", unit="share", ge=0)
    noise_gain: float = setting(
        0.1, "BRAKE sets a phase noise of this times what is too much", unit="rad per unit of R", ge=0
    )
    noise_limit: float = setting(0.2, "the largest phase noise", unit="rad", ge=0)
    bounds: Bounds = setting((0.1, 5.0), "where the coupling stays")
    label_only: bool = setting(False, "name the action, turn nothing")
    persist: bool = setting(
        True,
        "false: begin every step from the knobs the run began with, as a controller did whose "
        "knob the optimizer restored",
    )


class Freeze(Section):
    """Units of the mixers that stay as they began (models/interventions/freeze_units.py)."""

    units: list[int] = setting(
        [1, 2, 3], "which of the equal parts of every mixer are frozen, from 0", unit="units", min_length=1
    )
    of: int = setting(4, "number of equal parts", unit="units", ge=1)
    mode: Literal["param", "route", "ablate", "coarse"] = setting(
        "param",
        "`param` holds their routing and slack; `route` also lets nothing learn through their "
        "routing; `ablate` also silences them; `coarse` (legacy) freezes whole mixers",
    )
    shared: Literal["train", "freeze"] = setting("train", "whether what no unit has for itself is trained")
    head: bool = setting(
        False, "freeze the head and the final norm too, so that they cannot undo a clamp before them"
    )


class Clamp(Section):
    """An amplitude clamp (models/interventions/spec.py). Scope "frozen" belongs to weights, not to a
    recipe: it is for evaluations (experiments/clamps.py). A mean-preserving clamp is trained with the
    statistics of its batch.
    """

    site: Literal["S0", "S1", "S2", "S3"] = setting(
        "S2", "S0 residual stream before the final norm, S1 after it, S2 output of the mixers, S3 their state"
    )
    kind: Literal["naive", "mean-preserving"] = setting(
        "naive", "`naive` holds the norm, `mean-preserving` the spread around the mean"
    )
    scope: Literal["token", "batch"] = setting("token", "over what the size is taken")
    target: float | list[float] = setting(..., "the size, one number or one per unit")
    of: int = setting(1, "number of equal units", unit="units", ge=1)

    @model_validator(mode="after")
    def _require_possible(self):
        if self.kind == "mean-preserving" and self.scope == "token":
            raise ValueError('one vector has no mean over tokens; set clamp.scope = "batch"')
        if isinstance(self.target, list) and len(self.target) != self.of:
            raise ValueError(f"{len(self.target)} targets for clamp.of = {self.of} units; give one each")
        if min(self.target if isinstance(self.target, list) else [self.target]) < 0:
            raise ValueError(f"clamp.target is a size, which is not below 0, got {self.target}")
        return self


class Noise(Section):
    """Gaussian noise in every forward pass, new in every step, the same in every evaluation."""

    site: Literal["S2", "S3", "S4"] = setting(
        "S4", "S2 output of the mixers, S3 their state, S4 before the head"
    )
    level: float = setting(..., "width of the noise", unit="times rms", gt=0)
    rms: float | list[float] = setting(
        1.0,
        "root mean square of what is there without noise, one number or one per unit, as "
        "`models.interventions.calibration.calibrate` measures it",
    )
    of: int = setting(1, "number of equal units", unit="units", ge=1)

    @model_validator(mode="after")
    def _require_possible(self):
        if isinstance(self.rms, list) and len(self.rms) != self.of:
            raise ValueError(f"{len(self.rms)} rms for noise.of = {self.of} units; give one each")
        return self
