"""A recipe: everything a run needs, in one TOML file, refused unless every key is understood.

    [about]  question, hardware, minutes, expected number and tolerance (the same words as the file's header)
    [data]   where the text comes from, how it is cut into tokens, what is held out
    [model]  family, size and any field of that family's configuration; or base, a verified model to train on
    [train]  steps, batch, schedule, optimizer
    [loss]   terms beside the cross-entropy, each a table: [loss.uncertainty] weight = 0.1
    [monitor] the tone map and the target zone whose names and residence are logged
    [control] a rule that turns the model's knobs between steps
    [freeze] which units of the mixers stay as they began
    [[phase]] parts of the run with settings of their own; [curriculum], phases by the length of the rows
    [clamp]  a size that is held in every forward pass
    [noise]  what is added to activations or states in every forward pass
    [eval]   how often, on how much, what to sample
    [save]   checkpoints
    [failure] of a run that is meant to be stopped: by which checks, and what is broken in it
    [waive]  checks that may fail, each with the reason: C1 = "memoryless on purpose"
    [smoke]  what `--smoke` changes: train = { steps = 8 }, so that the whole run takes seconds

`load("default")` finds a shipped recipe by name, `load("my.toml")` a file. `--set model.kappa=0` overrides.
"""

from __future__ import annotations

import tomllib
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Discriminator,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from kssm_mlx.data.tasks import PREFIX, Task, make_task
from kssm_mlx.errors import ConfigError, is_among, nearest, quote
from kssm_mlx.parsing import LONGEST_KEY, parse_toml
from kssm_mlx.runs.arms import group_by_arm
from kssm_mlx.runs.records import OLD_KEYS, rename_old_keys
from kssm_mlx.shipped import find_shipped
from kssm_mlx.training.curriculum.sections import Curriculum, Phase, require_metrics, require_order
from kssm_mlx.training.recipe_names import MEANT, guess_key, known_metrics, reported_metrics
from kssm_mlx.training.recipe_sections import (
    MODEL_KINDS,
    About,
    Data,
    Eval,
    Failure,
    Model,
    Pretrained,
    Save,
    Train,
    _kind_of_model,
)
from kssm_mlx.training.steering_sections import Clamp, Control, Freeze, Monitor, Noise, Section, setting

UNSET = object()  # the value of an override that takes a key out
PROMISES = ("expected", "minutes")  # keys of [about] that were measured of one recipe, and of no other


class Recipe(Section):
    """smoke: the table that made this the smoke form of a recipe; empty in any other."""

    about: About = About()
    data: Data = Data()
    model: Annotated[
        Annotated[Model, Tag("(fresh)")] | Annotated[Pretrained, Tag("(base)")], Discriminator(_kind_of_model)
    ] = Model()
    train: Train = Train()
    loss: dict[str, dict[str, Any]] = setting(
        {}, "terms beside the cross-entropy, each a table with its weight"
    )
    monitor: Monitor | None = None
    control: Control | None = None
    freeze: Freeze | None = None
    clamp: Clamp | None = None
    noise: Noise | None = None
    phase: list[Phase] = setting([], "parts of the run, one after the other")
    curriculum: Curriculum | None = None
    eval: Eval = Eval()
    save: Save = Save()
    waive: dict[str, str] = setting({}, "checks that may fail, each with the reason")
    smoke: dict[str, Any] = setting({}, "what `--smoke` changes")
    failure: Failure | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The parts of the run; of most recipes there is one, which changes nothing."""
        return self.curriculum.phases if self.curriculum else tuple(self.phase) or (Phase(),)

    @property
    def reads_beginnings(self) -> bool:
        """Whether rows of a text are beginnings of its documents, which a learned state or prompt is for."""
        return isinstance(self.model, Pretrained) and self.model.train in ("state", "prompt")

    @model_validator(mode="after")
    def _state_is_not_handed_off(self):
        if isinstance(self.model, Pretrained) and self.reads_beginnings and self.train.hand_off:
            raise ValueError(
                "train.hand_off carries a state from row to row, and model.train = "
                f'"{self.model.train}" learns what rows begin with; leave one of them out'
            )
        return self

    def make_task(self, options: dict[str, Any] | None = None) -> Task | None:
        """The task that is trained on, some of its options changed; None for text."""
        if not self.data.source.startswith(PREFIX):
            return None
        return make_task(self.data.source.removeprefix(PREFIX), {**self.data.task, **(options or {})})

    def context_of(self, phase: Phase) -> int:
        """The length of its rows: its own, that of its task if this has other options, or train.context."""
        task = self.make_task(phase.task) if phase.task else None
        return phase.context or (task.length if task else self.train.context)

    @model_validator(mode="after")
    def _rows_fit(self):
        task = self.make_task()
        if task is not None and self.train.context != task.length:
            raise ValueError(
                f"train.context is {self.train.context}, the rows of {self.data.source} have "
                f"{task.length} targets; set train.context = {task.length}"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit(self):
        if not self.phase and self.curriculum is None:
            return self
        if self.phase and self.curriculum:
            raise ValueError("[curriculum] stands for [[phase]] tables; leave one of them out")
        if self.monitor and self.monitor.patience:
            raise ValueError(
                "[monitor.patience] reads one curve of the held-out loss, which phases measure on other "
                "rows; leave one of them out"
            )
        if self.train.hand_off and any(phase.context for phase in self.phases):
            raise ValueError("train.hand_off reads tracks of one context; leave it or the phases' out")
        require_order(self.phases)
        for i, phase in enumerate(self.phases, start=1):
            self._require_rows(i, phase)
        require_metrics(self.phases, known_metrics(self.make_task()))
        return self

    def _require_rows(self, i: int, phase: Phase) -> None:
        """Raises: ValueError for a phase whose context its rows do not have."""
        context, task = self.context_of(phase), self.make_task(phase.task)
        if phase.task and task is None:
            raise ValueError(f"phase {i} has options of a task, and the data is text")
        if context > self.train.context:
            raise ValueError(
                f"phase {i} has context {context}, more than train.context = {self.train.context}, which is "
                "the longest"
            )
        if task is not None and (context > task.length or (context < task.length and not task.prefixes)):
            raise ValueError(
                f"phase {i} has context {context}, its rows {task.length} targets"
                f"{', at most which they can have' if task.prefixes else ', which cannot be cut'}; set its "
                f"context, or the length of its task"
            )

    @model_validator(mode="after")
    def _expects_what_is_measured(self):
        goal = self.about.expected
        if goal is None:
            return self
        known = reported_metrics(self.make_task(), self.monitor is not None)
        if not is_among(goal.metric, known):
            raise ValueError(
                f"about.expected.metric: no report of this run has {goal.metric!r}"
                f"{nearest(goal.metric, known)}; it has {', '.join(known)}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _complete_keys(cls, values: Any) -> Any:
        """Today's names of keys; and a controller needs R and U, so it brings a profile and a target."""
        values = rename_old_keys(values) if isinstance(values, dict) else values
        return {"monitor": {}, **values} if isinstance(values, dict) and values.get("control") else values

    @field_validator("loss")
    @classmethod
    def _known_terms(cls, loss: dict[str, dict[str, Any]]):
        from kssm_mlx.training.loss_terms import parse_terms

        try:
            parse_terms(loss)
        except ConfigError as e:
            raise ValueError(str(e)) from None
        return loss


def list_shipped() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package (in a clone: the top-level folder)."""
    return dict(find_shipped())


def list_failures() -> dict[str, Path]:
    """The same of the published runs that failed, `failures/NAME`, and of the base model of some of them."""
    return {f"failures/{name}": path for name, path in find_shipped("failures").items()}


def load(name_or_path: str | Path, overrides: dict[str, Any] | None = None, *, smoke: bool = False) -> Recipe:
    """The recipe of a shipped name or a TOML file, with `overrides` such as {"model.kappa": 0} applied.

    smoke: in its smoke form; the overrides win.
    Raises: ConfigError for a missing file, broken TOML, an unknown key (with the nearest), a wrong type, and
        a smoke form that there is not.
    """
    table = _read_table(name_or_path)
    changes = table.pop("smoke", {})
    if smoke:
        _make_smoke(table, changes, str(name_or_path))
    before = deepcopy(table)
    _set_keys(table, overrides or {})
    recipe = _parse_changed(table, overrides or {}, str(name_or_path))
    return _forget_promises(recipe, [before, *_find_models(recipe)], overrides or {})


def read_smoke(name_or_path: str | Path) -> dict[str, Any]:
    """The [smoke] table of a shipped name or a TOML file, {} without one. Raises: ConfigError as `load`."""
    return _read_table(name_or_path).get("smoke", {})


def _read_table(name_or_path: str | Path) -> dict[str, Any]:
    known = {**list_shipped(), **list_failures()}
    path = known.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise ConfigError(
            f"no recipe {str(name_or_path)!r}, neither a TOML file nor a shipped one"
            f"{nearest(str(name_or_path), known)}; kssm recipes lists those that are shipped"
        )
    try:
        table = parse_toml(path.read_text("utf-8"))
    except ValueError as e:
        raise ConfigError(f"{path} is not valid TOML: {e}") from None
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    return rename_old_keys(table)


def _find_models(recipe: Recipe) -> list[dict[str, Any]]:
    """The tables of shipped recipes that ask the question of this one and promise the same: it was theirs."""
    if recipe.about.expected is None:
        return []
    shipped = (_read_once(path, path.stat().st_mtime_ns) for path in list_shipped().values())
    return [
        deepcopy(table)
        for table in shipped
        if (about := table.get("about", {})).get("question") == recipe.about.question
        and about.get("expected") == recipe.about.expected.model_dump()
    ]


@cache
def _read_once(path: Path, changed: int) -> dict[str, Any]:
    """changed: when the file last was, so that an edit is read."""
    return parse_toml(path.read_text("utf-8"))


def _parse_changed(table: dict[str, Any], overrides: dict[str, Any], where: str = "recipe") -> Recipe:
    """The table with its overrides; without the number it promised where they leave nobody to measure that.

    Raises: ConfigError as `parse`.
    """
    try:
        return parse(table, where=where)
    except ConfigError as error:
        stated = not overrides or any(key.startswith("about.expected") for key in overrides)
        if stated or "about.expected.metric" not in str(error):
            raise
    about = {name: value for name, value in table["about"].items() if name != "expected"}
    return parse({**table, "about": about}, where=where)


def _forget_promises(recipe: Recipe, models: list[dict[str, Any]], overrides: dict[str, Any]) -> Recipe:
    """Without what was measured of another recipe, one of `models`, but for what the overrides promise."""
    if all(_is_same_run(recipe, table) for table in models):
        return recipe
    stated = {key.split(".")[1] for key in overrides if key.startswith("about.")}
    forgotten = dict.fromkeys((name for name in PROMISES if name not in stated), None)
    return recipe.model_copy(update={"about": recipe.about.model_copy(update=forgotten)})


def _is_same_run(recipe: Recipe, table: dict[str, Any]) -> bool:
    """Whether both train the same thing, whatever their seeds."""
    try:
        other = parse({name: part for name, part in table.items() if name != "smoke"})
    except ConfigError:  # it needed the overrides
        return False
    plain = [each.model_copy(update={"smoke": {}}).model_dump() for each in (recipe, other)]
    return len(group_by_arm(plain, lambda each: each)) == 1


def override(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """The recipe with settings changed, {"train.steps": 2000}. Raises: ConfigError as `load`."""
    if not overrides:
        return recipe
    table = recipe.model_dump()
    _set_keys(table, overrides)
    return _forget_promises(_parse_changed(table, overrides), [recipe.model_dump()], overrides)


def _make_smoke(table: dict[str, Any], changes: Any, where: str) -> None:
    """Turn a recipe's table into that of its smoke form; what it should reach is no longer said."""
    if not changes or not isinstance(changes, dict):
        raise ConfigError(
            f"{where} has no [smoke] table, such as train = {{ steps = 8 }}; run it without --smoke"
        )
    _set_all(table, changes)
    for said in PROMISES:
        table.get("about", {}).pop(said, None)
    table["smoke"] = changes


def parse(table: dict[str, Any], where: str = "recipe") -> Recipe:
    """A Recipe from a plain nested dict. Raises ConfigError that names the key, what was got and expected."""
    try:
        return Recipe.model_validate(table)
    except ValidationError as e:
        raise ConfigError(f"{where}: " + "; ".join(_explain_error(err) for err in e.errors())) from None


def parse_override(text: str) -> tuple[str, Any]:
    """`model.kappa=0` -> ("model.kappa", 0). The value is TOML; a bare word is a string; none takes the key
    out of the recipe: `model.kappa=`.
    """
    key, equals, value = text.partition("=")
    if not equals or "." not in key or not key.isprintable() or len(key) > 200:
        hint = guess_key(Recipe, key.strip()[:200]) if equals else ""
        raise ConfigError(f"--set takes section.key=value such as model.kappa=0, got {text[:200]!r}{hint}")
    if not value.strip():
        return key.strip(), UNSET
    try:
        return key.strip(), parse_toml(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value
    except ValueError as e:
        raise ConfigError(f"--set {key.strip()}: {e}") from None


def _set_all(table: dict[str, Any], changes: dict[str, Any], section: str = "") -> None:
    """Set what is at the leaves of `changes`, and leave what is beside them."""
    for key, value in changes.items():
        if isinstance(value, dict):
            _set_all(table, value, f"{section}{key}.")
        else:
            _set_key(table, section + key, value)


def _set_keys(table: dict[str, Any], overrides: dict[str, Any]) -> None:
    for key, value in overrides.items():
        if key.startswith("smoke."):
            name = key.removeprefix("smoke.")
            raise ConfigError(f"--set {key}: [smoke] is what --smoke changes; set {name}, beside --smoke")
        _set_key(table, key, value)


def _set_key(table: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = OLD_KEYS.get(dotted, dotted).split(".")
    if len(sections) >= LONGEST_KEY:
        raise ConfigError(f"--set {dotted[:40]}...: a key of more than {LONGEST_KEY} parts")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {dotted}: {section!r} is a value, not a section")
    if value is UNSET:
        table.pop(key, None)
    else:
        table[key] = value


def _explain_error(error: ErrorDetails) -> str:
    """One pydantic error as words for a stranger."""
    loc = [str(part) for part in error["loc"]]
    name = ".".join(part for part in loc if part not in MODEL_KINDS)
    if error["type"] == "extra_forbidden" and loc[:2] == ["model", "(base)"]:
        fields = Pretrained.model_fields
        return (
            f"unknown key {name!r}{nearest(loc[-1], fields)}: model.base is a model of its own kind, beside "
            f"which model.family and its keys have no meaning; --set {name}= takes one out"
        )
    if error["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in loc[:-1]:
            if part in getattr(section, "model_fields", {}) or part in MODEL_KINDS:
                section = MODEL_KINDS.get(part) or section.model_fields[part].annotation
            options = getattr(section, "__args__", ())  # of a section that may be None, or of many
            section = next((a for a in options if hasattr(a, "model_fields")), section)
        hint = nearest(MEANT.get(loc[-1], loc[-1]), section.model_fields)
        return f"unknown key {name!r}{hint or guess_key(Recipe, loc[-1])}"
    if error["type"] == "value_error":  # of the whole recipe, it names its keys itself
        said = error.get("ctx", {}).get("error")
        return f"{name}: {said}" if name else str(said)
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "model_type":
        return f"{name}: should be a table, written [{name}], got {quote(error['input'])}"
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}, got {quote(error['input'])}"
