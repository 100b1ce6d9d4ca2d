"""Does what is learned survive the process that learned it?"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np

from kssm_mlx import models
from kssm_mlx.checks.core.probes import as_run, logit_deviation, logit_spread, logits_of, random_tokens
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.runs.layout import CHECKPOINTS, RECIPE, list_checkpoints
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.checkpoints.checkpoint import Snapshot
from kssm_mlx.training.state import initial_state, to_arrays

RELOAD = """
import sys
import kssm_mlx
import mlx.core as mx
import numpy as np
model = kssm_mlx.load(sys.argv[1]).model
model.eval()
np.save(sys.argv[3], np.array(model(mx.array(np.load(sys.argv[2]))).astype(mx.float32)))
"""


@check(
    "C32",
    level="P",
    also="S",
    title="a checkpoint is the model",
    source="docs/background/phase-grafts.md#checkpoints",
    passes=2,
)
def checkpoint_is_the_model(ctx: Context) -> Check:
    """The newest checkpoint, or before the first one a rehearsal of it, is opened by `kssm_mlx.load` in a new
    process; max |Δ logits| on 2 rows of 16 random tokens between that process and this, in units of their
    spread. Beside it six checkpoints of one number are saved with keep = 1; the best, the one of a signal and
    the newest must be left.

    Threshold: <= 1e-6: the same numbers and the same arithmetic, in practice 0. Retention: all three.
    Caught: Attempt 1, 3.3 hours of training lost when the process ended; the emergency checkpoint of step -1,
    which sorted before all others and was deleted at once.
    Sabotage: a checkpoint without one tensor; one that was saved before the last step; pruning that takes the
    best. That a signal ends a run with a checkpoint and a code other than 0 is tested by sending one
    (tests/training/test_loop.py).
    """
    ctx.need("model", "recipe", "data")
    if getattr(ctx.config, "model_type", None) not in models.FAMILIES:
        raise NotMeasurable("a checkpoint says which family to build, and this model is of none")
    tokens = random_tokens(ctx, 2, 16, stream=32)
    here = logits_of(as_run(ctx), tokens)
    with tempfile.TemporaryDirectory(prefix="kssm-checkpoint-") as folder:
        lost = _list_lost(Path(folder) / "retention")
        there, error = _logits_of_new_process(
            _current_checkpoint(ctx) or _rehearse_run(ctx, Path(folder)), tokens, Path(folder)
        )
    gap = math.inf if there is None else logit_deviation(there, here, logit_spread(here))
    problems = [error or f"logits differ by {gap:.1e}"] if not gap <= 1e-6 else []
    problems += [f"pruned: {', '.join(lost)}"] if lost else []
    return verdict(
        "C32",
        not problems,
        "; ".join(problems) or f"logits of a new process differ by {gap:.0e}; best and pinned kept",
        "<= 1e-6; the best, the pinned and the newest kept",
        "what is saved is not all there is: look for state that is not in the parameters, and for late saves",
        gap=gap,
        lost=lost,
    )


def _current_checkpoint(ctx: Context) -> Path | None:
    """The checkpoint of the weights that the model has now, if the run has one."""
    steps = list_checkpoints(Path(ctx.run_folder) / CHECKPOINTS) if ctx.run_folder else {}
    return steps.get(ctx.step)


def _rehearse_run(ctx: Context, folder: Path) -> Path:
    """A run folder as `train` would leave it, with one checkpoint of the model as it is."""
    run = folder / "run"
    run.mkdir()
    table = {**ctx.recipe.model_dump(), "configuration": models.config_to_dict(ctx.config)}
    base = {"host_digest": ctx.base_digest} if ctx.base_digest else {}
    (run / RECIPE).write_text(json.dumps({**table, **base}))
    (run / "data").symlink_to(Path(ctx.data.folder).resolve(), target_is_directory=True)
    weights = to_arrays(initial_state(ctx.model, ctx.recipe.train))[0]
    snapshot = Snapshot(max(ctx.step, 0), {ctx.recipe.model.trained_file: weights}, {})
    return checkpoint.save(run / CHECKPOINTS, snapshot)


def _logits_of_new_process(path: Path, tokens: np.ndarray, folder: Path) -> tuple[np.ndarray | None, str]:
    """(logits that a new process computes from a checkpoint, ""), or None and why there are none."""
    given, made = folder / "tokens.npy", folder / "logits.npy"
    np.save(given, tokens)
    command = [sys.executable, "-c", RELOAD, str(path), str(given), str(made)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return None, (run.stderr.strip().splitlines() or ["the new process ended without a word"])[-1]
    return np.load(made), ""


def _list_lost(folder: Path) -> list[str]:
    """Which of the best, the pinned and the newest of six checkpoints are gone after pruning to one."""
    wanted = {1: "the best", 2: "the one of a signal", 6: "the newest"}
    for step in range(1, 7):
        pinned = "SIGTERM" if step == 2 else ""
        snapshot = Snapshot(step, {"model": {"w": mx.array([float(step)])}}, {}, pinned)
        checkpoint.save(folder, snapshot, keep=1, best=step == 1)
    return [name for step, name in wanted.items() if step not in list_checkpoints(folder)]
