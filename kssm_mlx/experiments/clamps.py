"""The clamp experiment: does a model that has lost units make up for it by amplitude, and does it need to?

    control          every unit learns
    constraint       units are frozen
    naive            and the amplitude of every unit is held at the control's
    mean-preserving  and the spread of every unit is held at the control's, the mean is free

Per seed the control is trained first and gives the targets; every condition is one resolved recipe and one
run folder, and none counts before it is shown that its mask and its clamp act. Evaluations hold the naive
clamp per token and the other by statistics of the trained weights on training rows, so that nothing leaks.
Training holds the other by statistics of each batch, not of their running mean: it sees the future
and its neighbours there, and is evaluated under another clamp than it learned with.
What decides was fixed beforehand, in clamp_rule.py.

Source: docs/background/allostasis.md#clamps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import mlx.core as mx
import numpy as np
from rich.console import Console

from kssm_mlx import files
from kssm_mlx.data.batches import evaluation_windows
from kssm_mlx.data.tokens import TokenData, TokenSplit
from kssm_mlx.errors import CheckFailed, ConfigError
from kssm_mlx.experiments.clamp_rule import CONDITIONS, Outcome
from kssm_mlx.metrics.amplitude import amplitude, signal
from kssm_mlx.models.base import Intervention, LanguageModel, flatten, number, training_mode
from kssm_mlx.models.interventions.calibration import Place, calibrate
from kssm_mlx.models.interventions.freeze_units import free_routing
from kssm_mlx.models.interventions.spec import Amplitude, Observe, Statistics
from kssm_mlx.models.recurrent import RecurrentModel
from kssm_mlx.runner.initial_model import build_initial_model
from kssm_mlx.runner.train import train
from kssm_mlx.training.constraints import Constraints, build_constraints
from kssm_mlx.training.evaluation import make_evaluator
from kssm_mlx.training.losses import split_rows
from kssm_mlx.training.recipe import Recipe, parse

BATCHES = 8  # of rows, for statistics and amplitudes
Measured = dict[Place, Statistics]


@dataclass(frozen=True)
class Design:
    """site: where the clamps act, S2 per unit, or S1 as published (then the head is frozen wherever a clamp
    is). units of `of` are frozen. metric: the place of the task whose skill decides.
    """

    site: Literal["S1", "S2"] = "S2"
    units: tuple[int, ...] = (1, 2, 3)
    of: int = 4
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    metric: str = "tail"


def run_clamp_experiment(
    recipe: Recipe,
    folder: str | Path,
    design: Design = Design(),
    *,
    verify: bool = True,
    console: Console | None = None,
) -> list[Outcome]:
    """Train and measure every condition with every seed: FOLDER/seedN/CONDITION and FOLDER/outcomes.json.

    Raises: ConfigError for a recipe that is no task; CheckFailed for a mask or a clamp without effect, and,
        with `verify`, for a run that its checks stop.
    """
    if not recipe.data.source.startswith("task:"):
        raise ConfigError(f"the clamp experiment needs a task, got data.source {recipe.data.source!r}")
    folder, outcomes = Path(folder), []
    for seed in design.seeds:
        healthy = None
        for condition in CONDITIONS:
            asked = resolve_condition(recipe, condition, seed, design, healthy)
            place = folder / f"seed{seed}" / condition
            result = train(asked, place, verify=verify, console=console)
            outcome, own = _measure_condition(
                asked, TokenData.open(place / "data"), result.state.evaluated, design
            )
            outcomes.append(Outcome(condition, seed, *outcome))
            healthy = own if condition == "control" else healthy
            table = json.dumps([row._asdict() for row in outcomes], indent=1)
            # After every condition: training takes minutes, and a later one may fail.
            files.replace(folder / "outcomes.json", f"{table}\n")
    return outcomes


def _measure_condition(
    asked: Recipe, data: TokenData, trained: dict, design: Design
) -> tuple[tuple, Measured]:
    """What a trained condition reaches, and the statistics of its weights; refused if nothing was held."""
    # Twice the same draw: one takes the trained weights, the other shows what was frozen.
    model, initial = (build_initial_model(asked, data).model for _ in range(2))
    model.update(trained)
    held = build_constraints(asked, model)
    require_acting(model, initial, held, next(_rows(data.train, asked)))
    own = calibrate(
        cast(RecurrentModel, model), (split_rows(rows)[0] for rows in _rows(data.train, asked)), of=design.of
    )
    intervention = at_rest(held, own)
    routing = free_routing(model, held.masks, design.of)
    return (
        *_score(model, data, asked, intervention, design.metric),
        *_sizes(model, data, asked, intervention),
        routing,
    ), own


def resolve_condition(
    recipe: Recipe, condition: str, seed: int, design: Design, healthy: Measured | None = None
) -> Recipe:
    """The recipe of one condition; healthy: the control's statistics, where a clamp takes its target from."""
    table = recipe.model_dump(exclude_none=True)
    table["train"]["seed"] = seed
    if condition != "control":
        clamped = condition in ("naive", "mean-preserving")
        head = clamped and design.site == "S1"
        table["freeze"] = {"units": list(design.units), "of": design.of, "head": head}
        if clamped and healthy is None:
            raise ConfigError(f"{condition}: a clamp takes its target from the control; measure that first")
        if clamped and healthy:
            table["clamp"] = _clamp(condition, design, healthy)
    return parse(table, where=condition)


def _clamp(condition: str, design: Design, healthy: Measured) -> dict:
    of = 1 if design.site == "S1" else design.of
    here = [statistics for (site, _), statistics in healthy.items() if site == design.site]
    kept = [s.norm if condition == "naive" else s.std for s in here]
    target = mx.stack(kept).mean(axis=0).tolist()  # one target per unit, for all blocks
    scope = "token" if condition == "naive" else "batch"
    return {"site": design.site, "kind": condition, "scope": scope, "target": target, "of": of}


def at_rest(held: Constraints, own: Measured) -> Intervention | None:
    """The intervention for evaluations: statistics of the batch become those of the trained weights."""
    if held.intervention is None:
        return None
    acts = []
    for act in held.intervention.acts:
        if isinstance(act, Amplitude) and act.scope == "batch":
            blocks = [block for site, block in own if site == act.site]
            acts += [
                _freeze_amplitude(act, None if act.site in ("S0", "S1") else b, own[act.site, b])
                for b in blocks
            ]
        else:
            acts.append(act)
    return Intervention(acts=tuple(acts))


def _freeze_amplitude(act: Amplitude, block: int | None, measured: Statistics) -> Amplitude:
    return Amplitude(block, act.units, act.of, act.site, act.kind, "frozen", act.target, measured)


def require_acting(model: LanguageModel, initial: LanguageModel, held: Constraints, rows: mx.array) -> None:
    """Raises: CheckFailed when a frozen slice moved, nothing else did, or the clamp changes no logit."""
    before, after = flatten(initial.parameters()), flatten(model.parameters())
    for name, mask in held.masks.items():
        if mx.any((before[name] != after[name]) & ~mask).item():
            raise CheckFailed(f"{name} is frozen and moved; give train_loop the masks of the recipe")
    if held.masks and all(mx.array_equal(before[name], after[name]).item() for name in after):
        raise CheckFailed("no parameter moved at all: the run did not train")
    if held.intervention is not None:
        inputs, _ = split_rows(rows)
        with training_mode(model, training=False):
            plain = model.forward(inputs).logits
            change = number(mx.abs(model.forward(inputs, None, held.intervention).logits - plain).max())
        if not change > 1e-4 * number(mx.std(plain)):
            raise CheckFailed(
                f"{held.intervention.describe()[0]} changes no logit (by {change:.1e} at most); act elsewhere"
            )


def _score(model, data: TokenData, asked: Recipe, intervention, metric: str) -> tuple[float, float, float]:
    """Skill, nats and accuracy at the place of the design, or everywhere if the task has no such place."""
    train = asked.train
    windows = evaluation_windows(data.validation, asked.eval.tokens, train.context, train.batch_size)
    evaluate = make_evaluator(model, task=data.task, intervention=intervention)
    row = evaluate(model.parameters(), windows, data.bytes_per_target)
    if f"skill_{metric}" in row:
        return row[f"skill_{metric}"], row[f"nats_{metric}"], row[f"accuracy_{metric}"]
    return row["skill"], row["nats_per_token"], row["accuracy"]


def _sizes(model, data: TokenData, asked: Recipe, intervention) -> tuple[float, ...]:
    """`metrics.amplitude` of the stream, and of what the head reads along what the head decides by."""
    S0, S1, targets = _activations(model, _rows(data.validation, asked), intervention)
    bias = model.project(mx.zeros((1, S1.shape[-1])))
    weight = (model.project(mx.eye(S1.shape[-1])) - bias).T
    return *amplitude(S0), *signal(S1, np.array(weight), targets, np.array(bias))


def _activations(model, batches, intervention) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S0 and S1 [N, D] at the scored targets, and these [N]."""
    acts = (*(intervention.acts if intervention else ()), Observe())
    found = []
    for rows in batches:
        inputs, targets = split_rows(rows)
        with training_mode(model, training=False):
            trace = model.forward(inputs, None, Intervention(acts=acts)).trace
        scored = np.array(targets) >= 0
        found.append([np.array(x)[scored] for x in (trace["S0"], trace["S1"], targets)])
    S0, S1, targets = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return S0, S1, targets


def _rows(split: TokenSplit, recipe: Recipe) -> Iterator[mx.array]:
    size, context = recipe.train.batch_size, recipe.train.context
    return (
        mx.array(batch.tokens) for batch in evaluation_windows(split, BATCHES * size * context, context, size)
    )
