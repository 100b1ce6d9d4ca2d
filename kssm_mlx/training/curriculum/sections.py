"""The sections of a recipe that divide a run: [[phase]], and [curriculum], a short form of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pydantic import field_validator, model_validator

from kssm_mlx.errors import nearest
from kssm_mlx.training.steering_sections import Freeze, Section, setting

_CONDITION = re.compile(r"\s*([\w@]+)\s*(>=|<=)\s*([-+.\deE]+)\s*")


class Condition(NamedTuple):
    """What a number of an evaluation must reach, at least or at most."""

    metric: str
    at_least: bool
    value: float

    def holds(self, number: float | None) -> bool:
        """A number that is not finite, None, reaches nothing."""
        if number is None:
            return False
        return number >= self.value if self.at_least else number <= self.value


def parse_condition(text: str) -> Condition:
    """`accuracy_last >= 0.95`. Raises: ValueError for another form."""
    found = _CONDITION.fullmatch(text)
    if not found:
        raise ValueError(
            f"{text[:60]!r} is no condition; expected a number of the evaluation, >= or <=, and a value, "
            'such as "accuracy_last >= 0.95"'
        )
    return Condition(found[1], found[2] == ">=", float(found[3]))


class Phase(Section):
    """A part of the run with settings of its own; what it leaves out is as in the rest of the recipe."""

    until: int | str | None = setting(
        None,
        'when it ends: a step of the run, or a condition on an evaluation, `"accuracy_last >= 0.95"`; the '
        "last phase may have none, and goes on to train.steps; with one, the run ends with it",
    )
    at_most: int | None = setting(
        None, "when it ends whatever was measured", unit="updates of the phase", ge=1
    )
    context: int | None = setting(None, "length of a row, at most train.context", unit="tokens", ge=2)
    learning_rate: float | None = setting(None, "the peak, in place of train.learning_rate", gt=0)
    task: dict[str, Any] = setting({}, "options of the task that are other than in [data.task]")
    trains: list[str] | None = setting(
        None, "component tags (as in train.groups) that are trained; all unless given", min_length=1
    )
    freeze: Freeze | None = setting(None, "units that are frozen too, `mode` param or coarse")

    @field_validator("until")
    @classmethod
    def _check_condition(cls, until: int | str | None) -> int | str | None:
        if isinstance(until, str):
            parse_condition(until)
        elif until is not None and until < 1:
            raise ValueError(f"a step from 1, got {until}")
        return until

    @field_validator("freeze")
    @classmethod
    def _masks_only(cls, freeze: Freeze | None) -> Freeze | None:
        if freeze is not None and freeze.mode not in ("param", "coarse"):
            raise ValueError(
                f"mode {freeze.mode!r} changes what the model computes, which is the same in all phases; use "
                "param or coarse, or the recipe's own [freeze]"
            )
        return freeze

    @property
    def condition(self) -> Condition | None:
        return parse_condition(self.until) if isinstance(self.until, str) else None


class Curriculum(Section):
    """One phase per length of the rows; the next begins when a number of an evaluation is high enough."""

    lengths: list[int] = setting(..., "of the rows, rising to train.context", unit="tokens", min_length=1)
    metric: str = setting("accuracy_last", "which number of the evaluation")
    accuracy: float = setting(0.95, "from which the next length begins", unit="of the metric", gt=0, le=1)
    at_most: int | None = setting(
        None, "after which the next length begins all the same", unit="updates of a phase", ge=1
    )

    @model_validator(mode="after")
    def _check_lengths(self):
        if self.lengths[0] < 2 or any(b <= a for a, b in pairwise(self.lengths)):
            raise ValueError(f"curriculum.lengths rise, from 2 on, got {self.lengths}")
        return self

    @property
    def phases(self) -> tuple[Phase, ...]:
        until = f"{self.metric} >= {self.accuracy}"
        *before, last = self.lengths
        return (
            *(Phase(until=until, at_most=self.at_most, context=length) for length in before),
            Phase(context=last),
        )


def require_order(phases: Sequence[Phase]) -> None:
    """Raises: ValueError for phases of which one could not begin."""
    for i, phase in enumerate(phases[:-1], start=1):
        if phase.until is None and phase.at_most is None:
            raise ValueError(f"phase {i} of {len(phases)} never ends: give it until or at_most")
    steps = [phase.until for phase in phases if isinstance(phase.until, int)]
    if any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"the steps at which phases end must rise, got until = {steps}")


def require_metrics(phases: Sequence[Phase], known: Iterable[str]) -> None:
    """Raises: ValueError for a condition on what no evaluation of this run has."""
    known = tuple(known)
    for i, phase in enumerate(phases, start=1):
        if phase.condition and phase.condition.metric not in known:
            name = phase.condition.metric
            raise ValueError(
                f"phase {i} waits for {name!r}, which no evaluation of this run has"
                f"{nearest(name, known)}; it has {', '.join(known)}"
            )
