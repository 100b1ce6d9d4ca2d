"""Which phase a run is in, and what it trains on then: a pure function of the steps and evaluations so far.

    place   (index of the phase, step at which it began), saved in every checkpoint
    advance (place, step, evaluation of this step or None) -> place

A phase is decided after a step and its evaluation and before its checkpoint, so a run that goes on from one
reads the same rows with the same rate as the run that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tasks import Task
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.models.base import LanguageModel, component_of, flatten
from kssm_mlx.training.constraints import mask_units
from kssm_mlx.training.curriculum.sections import Phase
from kssm_mlx.training.recipe import Recipe


class Place(NamedTuple):
    """index of the phase, the number of phases when all are over; began: the step it began after."""

    index: int = 0
    began: int = 0


class Reads(NamedTuple):
    """What a phase reads: token files, the tokens of a row, and the task with rows of that length."""

    data: Any
    context: int
    task: Task | None


def advance(phases: Sequence[Phase], place: Place, step: int, evaluation: dict[str, Any] | None) -> Place:
    """The place after a step; evaluation: the one made at this step, if one was."""
    if place.index < len(phases) and _is_over(phases[place.index], step, step - place.began, evaluation):
        return Place(place.index + 1, step)
    return place


def _is_over(phase: Phase, step: int, done: int, evaluation: dict[str, Any] | None) -> bool:
    if phase.at_most is not None and done >= phase.at_most:
        return True
    if phase.condition:
        return evaluation is not None and phase.condition.holds(evaluation.get(phase.condition.metric))
    return isinstance(phase.until, int) and step >= phase.until


def rate_of(phase: Phase, recipe: Recipe) -> float:
    """What the schedule's learning rate is multiplied with in this phase."""
    peak = recipe.train.learning_rate
    return (phase.learning_rate or peak) / peak


def open_phase(phase: Phase, recipe: Recipe, data: Any, folder: Path) -> Reads:
    """What the phase reads; where its task has options of its own, token files in `folder`.

    Raises: ConfigError if these have another vocabulary than `data`, which the model is made for.
    """
    context = recipe.context_of(phase)
    if phase.task:
        options = {**recipe.data.task, **phase.task}
        own = prepare(recipe.data.model_copy(update={"task": options}), folder)
        _require_vocabulary(own, data)
        data = own
    task = recipe.make_task(phase.task) or data.task
    return Reads(data, context, task.at(context) if task is not None else None)


def _require_vocabulary(own: TokenData, data: Any) -> None:
    if own.vocab_size != data.vocab_size:
        raise ConfigError(
            f"a phase has a vocabulary of {own.vocab_size}, the run one of {data.vocab_size}: options of a "
            "phase's task may change its rows, not its ids"
        )


def phase_masks(phase: Phase, model: LanguageModel, held: dict[str, mx.array]) -> dict[str, mx.array]:
    """`held`, and where this phase lets nothing move.

    Raises: ConfigError for a component that the model does not have.
    """
    masks = dict(held)
    for own in (_freeze_others(phase.trains, model), mask_units(phase.freeze, model) if phase.freeze else {}):
        for name, mask in own.items():
            masks[name] = mx.logical_and(masks[name], mask) if name in masks else mask
    return masks


def _freeze_others(trains: list[str] | None, model: LanguageModel) -> dict[str, mx.array]:
    if trains is None:
        return {}
    arrays = flatten(model.trainable_parameters())
    tags = {name: component_of(model, name) for name in arrays}
    for tag in trains:
        if tag not in tags.values():
            raise ConfigError(
                f"phase.trains: {model.model_type} has no component {tag!r}; it has "
                f"{', '.join(sorted(set(tags.values())))}{nearest(tag, tags.values())}"
            )
    return {n: mx.zeros((1,) * arrays[n].ndim, mx.bool_) for n in arrays if tags[n] not in trains}
