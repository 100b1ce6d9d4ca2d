"""Train a recipe and score it on its held-out text: what most questions need, and what other protocols begin
with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from kssm_mlx.data.batches import evaluation_windows
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import CheckpointError
from kssm_mlx.experiments.job import Job, Measured
from kssm_mlx.experiments.protocols import Protocol
from kssm_mlx.models.base import Trained
from kssm_mlx.runner.load import load
from kssm_mlx.runner.train import train
from kssm_mlx.runs import layout
from kssm_mlx.runs.records import read_manifest, read_metrics, read_recipe
from kssm_mlx.training.evaluation import window_losses
from kssm_mlx.training.steering_sections import Section

# Of an evaluation, beside what a task measures.
EVALUATED = ("nats_per_token", "bits_per_byte", "perplexity", "accuracy", "skill")
METRICS = (
    *(*EVALUATED, "accuracy_*", "nats_*", "skill_*", "parameters", "steps", "best_nats_per_token"),
    *("R_first", "R_last", "R_rise", "longest"),
)
RIGHT = 0.9  # share of rows that are right at the last place, for a length to count as solved
TENTH = 10  # of the run, over which R is averaged at either end


class Options(Section):
    """The train protocol has none."""


class TrainedRun(NamedTuple):
    """A finished run: its folder, the evaluation that counts, its curve, the model as it was then."""

    folder: Path
    row: dict
    curve: list[list[float]]
    trained: Trained
    data: TokenData


def run(job: Job, folder: Path, options: Options, console: Console) -> Measured:
    return measure_run(train_run(job, folder, console))


def train_run(job: Job, folder: Path, console: Console) -> TrainedRun:
    """Train a job's recipe into `folder`, or go on where it was cut off.

    Raises: as `runner.train.train`.
    """
    resume = layout.read_pointer(folder / layout.CHECKPOINTS, layout.LATEST) is not None
    if not resume and folder.exists():
        shutil.rmtree(folder)  # cut off before its first checkpoint: it begins again
    result = train(job.recipe, folder, resume=resume, console=console)
    evaluations = [row for row in read_metrics(folder) if row.get("kind") == "eval"]
    # By step, since a run that was cut off has evaluated some steps twice; the last row counts.
    by_step = {row["step"]: row for row in evaluations}
    # The last row of metrics.jsonl, not the result's: a finished run that is opened again has none.
    row = result.best if job.at == "best" else by_step[max(by_step)]
    trained = load(_checkpoint(folder, row["step"], job.at))
    curve = [[step, by_step[step]["nats_per_token"]] for step in sorted(by_step)]
    return TrainedRun(folder, row, curve, trained, TokenData.open(folder / layout.DATA))


def measure_run(done: TrainedRun) -> Measured:
    """The numbers of the evaluation that counts, and the loss of every window of it."""
    kept = {name: value for name, value in done.row.items() if _is_metric(name, value)}
    best = min(value for _, value in done.curve if value is not None)
    manifest = read_manifest(done.folder)
    metrics = {
        **kept,
        "parameters": float(manifest["parameters"]),
        "steps": float(done.row["step"]),
        "best_nats_per_token": float(best),
        **_coherence(done.folder),
        **_find_longest_length(kept),
    }
    nats = window_losses(done.trained.model, open_windows(done.folder, done.data), compile=False)
    return Measured(metrics, {"nats_per_token": nats.tolist()}, done.curve)


def _coherence(folder: Path) -> dict[str, float]:
    """R averaged over blocks in the first and the last tenth of training; nothing for a model without R."""
    rows = [row for row in read_metrics(folder) if "loss" in row]
    found = [[x for name, x in row.items() if name.startswith("R_") and x is not None] for row in rows]
    R = [sum(values) / len(values) for values in found if values]
    if not R:
        return {}
    piece = max(1, len(R) // TENTH)
    first, last = sum(R[:piece]) / piece, sum(R[-piece:]) / piece
    return {"R_first": first, "R_last": last, "R_rise": last - first}


def _find_longest_length(metrics: dict[str, float]) -> dict[str, float]:
    """The longest test length at which 90 % of the rows are right at the last place, and at all shorter ones.

    0 where that is none of them; nothing for a run without test lengths.
    """
    last = {int(n.partition("@")[2]): v for n, v in metrics.items() if n.startswith("accuracy_last@")}
    longest = 0
    for length in sorted(last):
        if not last[length] >= RIGHT:
            break
        longest = length
    return {"longest": float(longest)} if last else {}


def open_windows(folder: Path, data: TokenData):
    """The windows on which the run evaluates itself."""
    recipe = read_recipe(folder)
    size = recipe["train"]["context"], recipe["train"]["batch_size"]
    return evaluation_windows(data.validation, recipe["eval"]["tokens"], *size)


def _is_metric(name: str, value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return name in EVALUATED or name.startswith(("accuracy_", "nats_", "skill_"))


def _checkpoint(folder: Path, step: int, at: str) -> Path:
    """The checkpoint of that evaluation. Raises: CheckpointError where the run kept none of it."""
    path = folder / layout.CHECKPOINTS / layout.step_name(step)
    if path.is_dir():
        return path
    raise CheckpointError(
        f"{folder} kept no checkpoint of step {step}, its {at} evaluation; "
        "make eval.every a multiple of save.every"
    )


PROTOCOL = Protocol("train", METRICS, Options, run)
