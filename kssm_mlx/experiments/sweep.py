"""Settings tried against each other: all combinations of a grid, or trials that optuna chooses.

A grid is an experiment without claims, in the same folder format. A search keeps optuna's own storage in its
folder, so that it goes on where it was cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from kssm_mlx.errors import CheckFailed, ConfigError
from kssm_mlx.experiments.arms import flatten_settings, label_of
from kssm_mlx.experiments.design import Design, make_smoke, parse_design
from kssm_mlx.experiments.execute import Experiment, Watch
from kssm_mlx.experiments.job import Job, safe_name
from kssm_mlx.experiments.protocols.train import Options, run
from kssm_mlx.experiments.schedule import LOWER_IS_BETTER
from kssm_mlx.experiments.summary import summarize_arms
from kssm_mlx.files import explain_write_errors
from kssm_mlx.reports.experiment import ArmSummary
from kssm_mlx.runs.experiment import Results
from kssm_mlx.training import recipe as recipes


def make_design(
    recipe: str, grid: dict[str, list[Any]], seeds: int, metric: str, settings: dict[str, Any]
) -> Design:
    """The design of a sweep. Raises: ConfigError for what is no setting or metric."""
    run_section = {"recipe": recipe, "set": settings, "seeds": list(range(seeds)), "equal": []}
    return parse_design({"run": run_section, "grid": grid, "metric": {"name": metric}}, where="sweep")


def run_grid(
    design: Design, folder: Path, watch: Watch, *, name: str, smoke: bool = False, jobs: int = 2
) -> Results:
    """Do every combination that is not done yet. Raises: as `Experiment.run`."""
    if smoke:
        design = make_smoke(design)
    return Experiment(folder, design, name, "", smoke=smoke, workers=jobs).run(watch)


def rank(design: Design, results: Results) -> list[tuple[str, str, str, str]]:
    """One row per combination, the best first; the ones without a number last."""
    return [
        (
            arm.name,
            f"{len(arm.values)}{f', {len(arm.failed)} stopped' if arm.failed else ''}",
            f"{arm.mean:.4g}" if arm.values else "",
            f"[{arm.low:.4g}, {arm.high:.4g}]" if math.isfinite(arm.low) else "",
        )
        for arm in _rank_arms(design, results)
    ]


def conclude(design: Design, results: Results) -> list[str]:
    """Which is ahead, by how much, and how little that may mean."""
    arms = [arm for arm in _rank_arms(design, results) if arm.values]
    if not arms:
        return ["No run has a number: see why above."]
    first, *rest = arms
    count = len(first.values)
    lines = [f"Best: {first.name}, {design.metric.name} {first.mean:.4g}, {count} seed{'s' * (count != 1)}."]
    if rest:
        gap, seeds = abs(rest[0].mean - first.mean), min(len(first.values), len(rest[0].values))
        lines.append(
            f"The next, {rest[0].name}, is {gap:.2g} behind on {seeds} seed{'s' if seeds > 1 else ''}; "
            "the best of many is better than it will be again, and no verdict was asked for."
        )
    ends = [
        key for key, values in design.grid.items() if len(values) > 2 and _at_end(first.name, key, values)
    ]
    return lines + [f"{key} is best at an end of its range: try further." for key in ends]


def _at_end(name: str, key: str, values: list[Any]) -> bool:
    labels = [label_of({key: value}) for value in (values[0], values[-1])]
    return any(label in name.split(", ") for label in labels)


def _rank_arms(design: Design, results: Results) -> list[ArmSummary]:
    sign = 1 if design.metric.name.startswith(LOWER_IS_BETTER) else -1
    arms = summarize_arms(design, results)
    return sorted(arms, key=lambda arm: (not arm.values, sign * arm.mean if arm.values else 0.0))


def parse_range(text: str) -> tuple[str, tuple[float, float]]:
    """`train.learning_rate=1e-4..1e-2` -> (key, (1e-4, 1e-2)). Raises: ConfigError."""
    key, _, values = text.partition("=")
    low, dots, high = values.partition("..")
    try:
        found = float(low), float(high)
    except ValueError:
        found = (0.0, 0.0)
    if not (dots and "." in key and found[0] < found[1]):
        raise ConfigError(
            f"--trials takes --grid SECTION.KEY=LOW..HIGH such as train.clip=0.1..10, got {text!r}"
        )
    return key.strip(), found


def search(
    recipe: str,
    ranges: dict[str, tuple[float, float]],
    trials: int,
    folder: Path,
    metric: str,
    settings: dict[str, Any],
    *,
    smoke: bool = False,
    say: Callable[[str], Any] = print,
) -> list[tuple[str, ...]]:
    """Trials that optuna chooses, one after another; the rows of all, the best first.

    A range that begins above 0 and spans a factor of 10 or more is searched on a logarithmic scale.
    Raises: ConfigError where optuna is not installed or a setting cannot be used.
    """
    if not find_spec("optuna"):
        raise ConfigError("--trials needs optuna; install it: pip install 'kssm-mlx[search]'")
    optuna = import_module("optuna")  # an optional package
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with explain_write_errors("the search", folder):
        folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder.resolve() / 'optuna.db'}",
        study_name="sweep",
        direction="minimize" if metric.startswith(LOWER_IS_BETTER) else "maximize",
        load_if_exists=True,
        # The same trials for everybody, on one machine after another.
        sampler=optuna.samplers.TPESampler(seed=0),
    )

    def objective(trial: Any) -> float:
        chosen = {
            key: trial.suggest_float(key, low, high, log=low > 0 and high / low >= 10)
            for key, (low, high) in ranges.items()
        }
        tried = recipes.load(recipe, {**flatten_settings(settings), **chosen}, smoke=smoke)
        job = Job(f"trial-{trial.number}", tried.train.seed, tried)
        with open(folder / f"{safe_name(job.arm)}.log", "w") as log:
            try:
                value = run(job, job.run_folder(folder), Options(), Console(file=log, width=120)).metrics[
                    metric
                ]
            except CheckFailed as e:
                say(f"trial {trial.number}: stopped by its checks: {e}")
                # Told apart from a bad value: a stopped run says nothing about the setting's loss.
                raise optuna.TrialPruned from None
        say(f"trial {trial.number}: {label_of(chosen)}: {value:.4g}")
        return value

    done = sum(trial.state.is_finished() for trial in study.trials)
    study.optimize(objective, n_trials=max(0, trials - done))
    finished = [t for t in study.trials if t.value is not None]
    sign = 1 if metric.startswith(LOWER_IS_BETTER) else -1
    finished.sort(key=lambda t: sign * (t.value or 0.0))
    return [(str(t.number), *(f"{t.params[key]:.4g}" for key in ranges), f"{t.value:.4g}") for t in finished]
