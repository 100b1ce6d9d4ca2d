"""An experiment as it is written down before its first run: question, arms, seeds, claims, and what decides.

    [about]     question, hardware, minutes, expected
    [run]       recipe, settings of all arms, seeds, protocol, what is equal between arms
    [arms.NAME] recipe and settings of one arm
    [grid]      "train.learning_rate" = [1e-3, 2e-3]: every arm once with each combination
    [select]    settings of which each arm takes its own best, on a seed that decides nothing else
    [metric]    what is measured, and the smallest difference that matters
    [[claim]]   arm, against, rule: what is said to be so, and when that is decided
    [stop]      after how many seeds to look, and the level spent on it; the budget in minutes
    [options]   of the protocol
    [smoke]     seeds and settings of `--smoke`

What decides is digested (`Design.digest`) and stored with the time before the first run; a change shows.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.parsing import parse_toml
from kssm_mlx.shipped import find_shipped
from kssm_mlx.training.recipe_sections import LARGEST_SEED
from kssm_mlx.training.steering_sections import Section, setting

Rule = Literal["lower", "higher", "different", "equal"]
SAME = ("parameters", "tokens", "steps", "flops")


class About(Section):
    """What is asked. No key here changes a run or a verdict."""

    question: str = setting("", "what the experiment is to answer")
    hardware: str = setting("", "on what the minutes were measured")
    minutes: float | None = setting(None, "how long it takes there", unit="minutes")
    expected: str = setting("", "what is known so far")


class Run(Section):
    """What all arms share."""

    recipe: str = setting("default", "a shipped recipe or a TOML file")
    set: dict[str, Any] = setting({}, "settings of the recipe")
    unset: list[str] = setting([], "keys that are taken out of it, such as `model.kappa`")
    seeds: list[int] = setting(..., "of the runs, each arm once with each", min_length=1, max_length=1000)
    protocol: str = setting("train", "what is done with an arm and a seed")
    equal: list[Literal["parameters", "tokens", "steps", "flops"]] = setting(
        ["tokens", "steps"], "what must be the same in all arms, refused otherwise"
    )
    match: int | None = setting(
        None, "parameters that every arm is given by its width, within 1 %", unit="parameters", ge=100
    )


class Arm(Section):
    """What one arm changes."""

    recipe: str | None = setting(None, "in place of the shared one")
    set: dict[str, Any] = setting({}, "settings, on top of the shared ones")
    unset: list[str] = setting([], "keys that are taken out, on top of the shared ones")
    match: int | None = setting(None, "in place of run.match", unit="parameters", ge=100)
    options: dict[str, Any] = setting({}, "of the protocol, on top of the shared ones")


class Select(Section):
    """Settings of which every arm takes its best before the experiment begins."""

    grid: dict[str, list[Any]] = setting(..., "setting -> values to try", min_length=1)
    seed: int = setting(100, "of these runs; none of the experiment's", ge=0, le=LARGEST_SEED)
    set: dict[str, Any] = setting({}, "settings of these runs, such as fewer steps")


class Metric(Section):
    """What decides, unless a claim names another."""

    name: str = setting("nats_per_token", "a number of the protocol")
    at: Literal["last", "best"] = setting("last", "of the last or the best evaluation of a run")
    smallest: float = setting(0.0, "smallest difference of interest", unit="of the metric", ge=0)


class Claim(Section):
    """`arm` has a lower (higher, different, equal) metric than `against`, or than `value`.

    "equal" is decided by two one-sided tests against the smallest difference of interest.
    """

    says: str = setting("", "the claim in words")
    arm: str = setting(..., "the arm that it is about")
    rule: Rule = setting(..., "`lower`, `higher`, `different` or `equal`")
    against: str | None = setting(None, "the arm that it is compared with; the same arm by default")
    metric: str | None = setting(None, "in place of the experiment's")
    against_metric: str | None = setting(None, "the metric of `against`, the same by default")
    value: float | None = setting(None, "a number in place of an arm", unit="of the metric")
    smallest: float | None = setting(None, "in place of the experiment's", unit="of the metric", ge=0)

    @model_validator(mode="after")
    def _compares_something(self):
        if self.value is not None and (self.against or self.against_metric):
            raise ValueError("a claim compares with an arm or with a value, not with both")
        if self.value is None and not self.against and not self.against_metric:
            raise ValueError("say what the arm is compared with: against = ARM, against_metric or value")
        return self


class Stop(Section):
    """When the experiment may end early, and when it must."""

    looks: list[int] = setting([], "numbers of seeds after which the claims are decided, all of them last")
    minutes: float | None = setting(None, "no run begins after these", unit="minutes", gt=0)


class Smoke(Section):
    """What `--smoke` changes beside the smoke forms of the recipes."""

    seeds: list[int] | None = setting(None, "in place of the seeds", min_length=1)
    set: dict[str, Any] = setting({}, "settings of every run")
    match: int | None = setting(None, "in place of run.match", ge=100)
    grid: dict[str, list[Any]] = setting({}, "in place of select.grid")
    options: dict[str, Any] = setting({}, "options of the protocol")


class Design(Section):
    """One experiment."""

    about: About = About()
    run: Run
    arms: dict[str, Arm] = setting({}, "by name; one arm of the shared recipe where there are none")
    grid: dict[str, list[Any]] = setting({}, "setting -> values: each arm once with each combination")
    select: Select | None = None
    metric: Metric = Metric()
    claim: list[Claim] = setting([], "what is decided")
    stop: Stop = Stop()
    options: dict[str, Any] = setting({}, "of the protocol")
    smoke: Smoke = Smoke()

    @model_validator(mode="after")
    def _hangs_together(self):
        seeds = self.run.seeds
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"run.seeds has a seed twice: {seeds}")
        if self.select and self.select.seed in seeds:
            raise ValueError(f"select.seed {self.select.seed} is a seed of the experiment; take another")
        if self.stop.looks and sorted({*self.stop.looks, len(seeds)}) != self.stop.looks:
            raise ValueError(f"stop.looks {self.stop.looks} should rise to the number of seeds, {len(seeds)}")
        for name in self.arms:
            if not name.isprintable() or set(name) & set("/\\,=") or name.startswith("."):
                raise ValueError(f"arms.{name}: a name has no '/', ',' or '=' and does not begin with a dot")
        return self

    @property
    def digest(self) -> str:
        """Of everything that a verdict depends on: all but [about] and [smoke]."""
        decisive = self.model_dump(mode="json", exclude={"about", "smoke"})
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def list_experiments() -> dict[str, Path]:
    """Name -> file of the experiments that come with the package."""
    return dict(find_shipped("experiments"))


def load_design(name_or_path: str | Path, settings: dict[str, Any] | None = None) -> tuple[Design, str]:
    """The design of a shipped name or a TOML file, and its text.

    settings: of every run, on top of the file's; they become part of the design.
    Raises: ConfigError for a missing file, broken TOML, an unknown key, arms or claims that do not fit.
    """
    known = list_experiments()
    path = known.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise ConfigError(
            f"no experiment {str(name_or_path)!r}, neither a TOML file nor a shipped one"
            f"{nearest(str(name_or_path), known)}; kssm experiment list shows those that are shipped"
        )
    try:
        text = path.read_text("utf-8")
        table = parse_toml(text)
    except ValueError as e:
        raise ConfigError(f"{path} is not valid TOML: {e}") from None
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    if settings:
        run = table.setdefault("run", {})
        run["set"] = {**run.get("set", {}), **settings}
    return parse_design(table, str(name_or_path)), text


def parse_design(table: dict[str, Any], where: str = "experiment") -> Design:
    """A Design from a plain nested dict. Raises: ConfigError that names the key and what was expected."""
    try:
        return Design.model_validate(table)
    except ValidationError as e:
        raise ConfigError(f"{where}: " + "; ".join(_explain(error) for error in e.errors())) from None


def make_smoke(design: Design) -> Design:
    """Its smoke form: fewer seeds, tiny runs; what it decides means nothing."""
    smoke = design.smoke
    seeds = smoke.seeds or design.run.seeds[:2]
    select = design.select
    if select and smoke.grid:
        select = select.model_copy(update={"grid": smoke.grid})
    return design.model_copy(
        update={
            "select": select,
            "run": design.run.model_copy(update={"seeds": seeds}),
            "options": {**design.options, **smoke.options},
            "stop": Stop(),
        }
    )


def _explain(error: dict[str, Any] | Any) -> str:
    """One pydantic error as words."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        fields = _fields_at(error["loc"][:-1])
        return f"unknown key {name!r}{nearest(str(error['loc'][-1]), fields)}"
    if error["type"] == "value_error":
        return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    sections = {"about": About, "run": Run, "arms": Arm, "select": Select, "metric": Metric, "claim": Claim}
    sections |= {"stop": Stop, "smoke": Smoke}
    section = sections.get(str(location[0]), Design) if location else Design
    return list(section.model_fields)
