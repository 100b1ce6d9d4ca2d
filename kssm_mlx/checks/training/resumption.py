"""Is a run that was interrupted and resumed the run that it would have been?"""

from __future__ import annotations

import io
import math
import shutil
import tempfile
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kssm_mlx.checks.core.probes import short_context
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.errors import Interrupted
from kssm_mlx.models.base import flatten, with_parameters
from kssm_mlx.runs.layout import CHECKPOINTS, LATEST, list_checkpoints
from kssm_mlx.runs.records import read_metrics
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.loop import train_loop
from kssm_mlx.training.recipe import Recipe, parse
from kssm_mlx.training.state import to_arrays

STEPS, HALF, CHANGE, ROWS, CONTEXT = 20, 10, 15, 2, 64
LARGEST = 1 << 30  # bytes of a checkpoint that the check is willing to write four times
TIMINGS = {"tokens_per_second", "seconds"}
LIMITS = {"loss": 1e-5, "lr": 0.0}
STATES = ("key", "step", "cursor", "knobs", "buffers")


@check("C33", level="S", title="a resumed run is the same run", source="docs/background/k-ssm.md#resuming")
def resume_parity(ctx: Context) -> Check:
    """The recipe with 20 steps of 2 rows, its schedule shortened to them, its [freeze] and [clamp] as they
    are, once in one piece and once interrupted after 10 and resumed from the checkpoint. Compared over steps
    11 to 20: max |Δ loss| and every other column of the rows, and at the end the random key, the place in the
    data and the knobs.

    Threshold: loss within 1e-5 nats; learning rate, key, place and knobs equal; other columns within 1e-3
    relative, because a GPU may sum in another order. On a CPU all of it is equal bit for bit.
    Caught: K-SSM v2, which advanced its restored scheduler a second time; every trainer that kept random
    state, controller or phases outside the checkpoint.
    Sabotage: a checkpoint that forgets the step of the schedule; a model with a state that is not saved.
    """
    ctx.need("model", "recipe", "data")
    if not is_dataclass(ctx.model.args):
        raise NotMeasurable("a checkpoint keeps the model's args, and these are no dataclass")
    size = 3 * 4 * sum(array.size for array in flatten(ctx.model.trainable_parameters()).values())
    if size > LARGEST:
        raise NotMeasurable(f"a checkpoint has {size / 1e9:.1f} GB; check a smaller size of the same recipe")
    with tempfile.TemporaryDirectory(prefix="kssm-resume-") as folder:
        whole, resumed = Path(folder) / "whole", Path(folder) / "resumed"
        ends = [_train(ctx, whole, resume=False)]
        _interrupt(whole, resumed)
        ends.append(_train(ctx, resumed, resume=True))
        rows = [_rows(run) for run in (whole, resumed)]
    gaps = _gaps(*rows)
    apart = [name for name, gap in gaps.items() if not gap <= LIMITS.get(name, 1e-3)]
    apart += [
        name for name in ends[0] if name not in ends[1] or not np.array_equal(ends[0][name], ends[1][name])
    ]
    loss = gaps.get("loss", math.inf)
    return verdict(
        "C33",
        not apart,
        f"loss differs by {loss:.1e}; other than before: {', '.join(apart[:4])}"
        if apart
        else f"loss differs by {loss:.0e}, {len(gaps)} columns and {len(ends[0])} states the same",
        "loss within 1e-5, the rest equal",
        "whatever changes during a run belongs into TrainState, which is what a checkpoint holds",
        gaps=gaps,
        apart=apart,
    )


def _shorten_recipe(recipe: Recipe) -> Recipe:
    """The recipe in 20 small steps."""
    table = {**recipe.model_dump(), "about": {}}
    context = short_context(recipe, CONTEXT)
    table["train"] |= {
        "steps": STEPS,
        "batch_size": max(ROWS, recipe.train.accumulation),
        "context": context,
        "warmup": min(recipe.train.warmup, HALF // 2),
    }
    table["eval"] |= {"every": STEPS, "lengths_every": None, "tokens": 256, "sample_tokens": 0}
    table["save"] |= {"every": HALF}
    table["data"]["task"].pop("test_lengths", None)  # they are scored at the end, and change nothing
    return parse({**table, "curriculum": None, "phase": _shorten_phases(recipe, context)})


def _shorten_phases(recipe: Recipe, context: int) -> list[dict[str, Any]]:
    """The first phase and the last of a recipe that has several, which follow each other after the half."""
    phases = [phase.model_dump() for phase in recipe.phases]
    for phase in phases:
        phase["context"] = phase["context"] and min(phase["context"], context)
    if len(phases) < 2:
        return []
    first, last = (phase | {"at_most": None} for phase in (phases[0], phases[-1]))
    return [first | {"until": CHANGE}, last | {"until": None}]


def _train(ctx: Context, folder: Path, resume: bool) -> dict[str, np.ndarray]:
    """Train from the model as it is, which is left as it was; the states at the end besides the weights."""
    recipe, silent = _shorten_recipe(ctx.recipe), Console(file=io.StringIO())
    held = {"masks": ctx.masks or None, "intervention": ctx.intervention}
    try:
        result = with_parameters(
            ctx.model,
            ctx.model.parameters(),
            lambda: train_loop(ctx.model, recipe, ctx.data, folder, resume=resume, console=silent, **held),
        )
    except Interrupted:  # by whoever is waiting for the checks
        raise KeyboardInterrupt from None
    rest = to_arrays(result.state)[1]
    return {n: np.array(a) for n, a in rest.items() if n.split(".")[0] in STATES}


def _interrupt(whole: Path, resumed: Path) -> None:
    """The folder as the run would have left it after half of its steps."""
    shutil.copytree(whole, resumed)
    there = list_checkpoints(resumed / CHECKPOINTS)
    shutil.rmtree(there[STEPS])
    checkpoint.write_pointer(resumed / CHECKPOINTS, LATEST, there[HALF])


def _rows(run: Path) -> list[dict[str, Any]]:
    """The training rows of the second half."""
    rows = read_metrics(run)
    return [row for row in rows if row["kind"] == "train" and row["step"] > HALF]


def _gaps(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, float]:
    """Column -> the largest difference over the steps, of the loss in nats, else relative."""
    if len(a) != len(b):
        return {"steps": math.inf}
    columns = sorted({*a[0], *b[0]} - TIMINGS)
    return {name: max(_gap(name, x.get(name), y.get(name)) for x, y in zip(a, b)) for name in columns}


def _gap(name: str, x: Any, y: Any) -> float:
    if x == y:
        return 0.0
    if not all(isinstance(value, int | float) for value in (x, y)):
        return math.inf
    return abs(x - y) / (1.0 if name == "loss" else max(abs(x), 1e-8))
