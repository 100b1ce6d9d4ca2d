"""Train one component alone, then the other alone, then both: one run in three phases.

A component that waits has learning rate and weight decay 0. Each phase goes on from the weights of the one
before, under the schedule of a run of so many steps, so the learning rate rises again where a phase begins.

Source: docs/background/hybrids.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import model_validator
from rich.console import Console

from kssm_mlx.checks.suite import list_suite
from kssm_mlx.errors import ConfigError
from kssm_mlx.experiments.job import Job, Measured
from kssm_mlx.experiments.protocols import Protocol
from kssm_mlx.experiments.protocols import train as training
from kssm_mlx.runner.train import train
from kssm_mlx.runs import layout
from kssm_mlx.runs.records import read_metrics
from kssm_mlx.training.recipe import Recipe, override
from kssm_mlx.training.steering_sections import Section, setting

WAITING = {"learning_rate": 0.0, "weight_decay": 0.0}


class Options(Section):
    first: str = setting(
        "rwkv", "component that learns in the first phase; empty: no phases, all learn together"
    )
    second: str = setting("mamba", "component that learns in the second phase")
    first_share: float = setting(1 / 3, "of the steps, for the first phase", gt=0, lt=1)
    second_share: float = setting(1 / 3, "of the steps, for the second phase", gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_something(self):
        if self.first_share + self.second_share >= 1:
            raise ValueError("first_share and second_share leave no step in which both learn")
        return self


def run(job: Job, folder: Path, options: Options, console: Console) -> Measured:
    for recipe in list_phases(job.recipe, options):
        newest = layout.read_pointer(folder / layout.CHECKPOINTS, layout.LATEST)
        if newest is None and folder.exists():
            shutil.rmtree(folder)  # cut off before its first checkpoint: it begins again
        if newest is None or _step_of(newest) < recipe.train.steps:
            train(recipe, folder, resume=newest is not None, allow_config_change=True, console=console)
    measured = training.measure_run(training.train_run(job, folder, console))
    losses = {row["step"]: row["nats_per_token"] for row in read_metrics(folder) if row.get("kind") == "eval"}
    for i, recipe in enumerate(list_phases(job.recipe, options), 1):
        measured.metrics[f"nats_phase_{i}"] = float(losses[recipe.train.steps])
    return measured


def list_phases(recipe: Recipe, options: Options) -> Iterator[Recipe]:
    """The recipe of each phase, the last being the whole run's own."""
    steps = recipe.train.steps
    if options.first:
        ends = int(options.first_share * steps), int((options.first_share + options.second_share) * steps)
        for end, waiting in zip(ends, (options.second, options.first), strict=True):
            if end < 1:
                raise ConfigError(f"train.steps {steps} are too few for three phases")
            yield _phase(recipe, end, waiting)
    yield recipe


def _phase(recipe: Recipe, end: int, waiting: str) -> Recipe:
    groups: dict[str, Any] = {name: group.model_dump() for name, group in recipe.train.groups.items()}
    # The end of a phase is no result: what is asked of one is asked after the last.
    of_results = {*list_suite("S")} - {*list_suite("P"), *list_suite("R")}
    waive = {**recipe.waive, **dict.fromkeys(sorted(of_results), "the run goes on with the next phase")}
    return override(
        recipe, {"train.steps": end, "train.groups": {**groups, waiting: WAITING}, "waive": waive}
    )


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


PROTOCOL = Protocol("unfreeze", training.METRICS, Options, run)
