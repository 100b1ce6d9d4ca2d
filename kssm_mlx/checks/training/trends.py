"""What curves say: whether the loss falls, and whether R answers to the input or to its own past."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import NormalDist

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import mean_R, noise
from kssm_mlx.checks.core.probes import short_context
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, require_value, verdict
from kssm_mlx.data.batches import random_batch
from kssm_mlx.metrics.stats import autocorrelation, fit_trend
from kssm_mlx.models.base import number, training_mode
from kssm_mlx.runs.layout import CHECKPOINTS, list_checkpoints
from kssm_mlx.training.losses import cross_entropy, split_rows

FEWEST = 30  # rows after the warm-up, before anything is said of a trend
CERTAIN = -3.0
LEARNED = 0.01  # of where it began: a loss that has come down to this has fallen, whatever it did since
BATCHES, ROWS, CONTEXT = 96, 2, 16
BUFFER = 0.5


@check(
    "C37",
    level="R",
    also="S",
    title="the loss falls",
    source="docs/background/phase-grafts.md#a-trend-that-is-none",
    false_alarm=1 / 500,
)
def loss_trend(ctx: Context) -> Check:
    """The logged training cross-entropy after the warm-up, averaged in up to 50 pieces of equal length; slope
    and t of the straight line through them. Where the recipe divides the run into phases, each has a line of
    its own, since its rows are others, and the one that falls most clearly is judged.

    Threshold: t < -3, or nobody may say "learning": noise alone gives that once in 500 runs; of several
    phases the least t is as improbable, -3.4 of four. Or, in one phase, a mean of the last tenth below a
    hundredth of the first loss, or of ln V where that is less, since whoever begins far above a guess learns
    nothing by coming down to one: what was learned during the warm-up stands still afterwards. It warns while
    the run goes on, which may yet begin to learn, and fails when its last checkpoint is written.
    Caught: Attempt 4 (t = +0.9 over 500 steps, reported as learning); Attempt 3, whose loss was noise.
    Sabotage: a loss of noise around a constant, however small; one that climbs; one that is not finite.
    """
    ctx.need("history", "recipe")
    logged = [row for row in require_value(ctx.history, "history") if row.get("kind") == "train"]
    rows = [row for row in logged if row["step"] > ctx.recipe.train.warmup]
    if len(rows) < FEWEST:
        raise NotMeasurable(f"{len(rows)} steps after the warm-up, {FEWEST} needed")
    phases = _losses_by_phase(rows)
    # A phase whose t is NaN comes first, as argmin has it, and fails.
    lines = [fit_trend(part) for part in phases]
    clearest = int(np.argmin([t for _, t in lines]))
    (slope, t), steps = lines[clearest], len(phases[clearest])
    limit = _limit_of(len(phases))
    guess = math.log(ctx.data.vocab_size) if ctx.data else 0.0
    left = float(np.min([_share_left(part, guess) for part in _losses_by_phase(logged)]))
    fell = not math.isnan(t) and (t < limit or left < LEARNED)
    return verdict(
        "C37",
        "pass" if fell else "fail" if _is_over(ctx) else "warn",
        f"{1000 * slope:+.3g} nats per 1000 steps, t {t:+.1f}, {steps} steps; {left:.2g} of the loss left",
        f"t < {limit:.2g}, or < {LEARNED} left",
        "nothing was learned: see C7 and C8, then the learning rate; or the model had learned it before",
        slope=slope,
        t=t,
        left=left,
    )


def _share_left(losses: list[float], guess: float) -> float:
    """The mean of the last tenth beside the first loss, or a guess's where that is less; NaN of none."""
    began = min(losses[0], guess)
    return float(np.mean(losses[-(len(losses) // 10) :])) / began if began > 0 else math.nan


def _losses_by_phase(rows: list[dict]) -> list[list[float]]:
    """The losses of each phase that is long enough. Raises: NotMeasurable where none is."""
    found: dict[int | None, list[float]] = {}
    for row in rows:
        found.setdefault(row.get("phase"), []).append(math.nan if row["loss"] is None else row["loss"])
    long = [losses for losses in found.values() if len(losses) >= FEWEST]
    if not long:
        raise NotMeasurable(f"no phase has {FEWEST} steps after the warm-up")
    return long


def _limit_of(lines: int) -> float:
    """What the least t of so many lines through noise is below as rarely as one is below CERTAIN."""
    normal = NormalDist()
    return CERTAIN if lines == 1 else normal.inv_cdf(normal.cdf(CERTAIN) / lines)


def _is_over(ctx: Context) -> bool:
    """Whether the recipe's steps are done and saved; the last evaluation comes before the last checkpoint."""
    saved = ctx.run_folder is None or ctx.step in list_checkpoints(Path(ctx.run_folder) / CHECKPOINTS)
    return saved and ctx.step >= ctx.recipe.train.steps


@check(
    "C38",
    level="S",
    title="R answers to the input",
    source="docs/background/phase-grafts.md#r-is-the-memory-of-a-buffer",
    needs_training=True,
    passes=BATCHES,
    false_alarm=5e-3,
)
def state_memory(ctx: Context) -> Check:
    """At fixed weights, in training mode, without a cache: mean R of each block and the loss on 96
    independent batches of 2 rows of at most 16 tokens, one after the other. Lag-1 autocorrelation of R less
    that of the loss. (The R that a run logs is smooth for another reason, too: the weights move slowly.)

    Threshold: <= 0.5 in every block: batches are independent, so both are 0 with a standard error of 0.1;
    half of R coming from the call before is a buffer.
    Caught: Attempt 4: 0.994 for R and -0.06 for the loss, read as R responding to language.
    Sabotage: an R that is carried from call to call in a hidden buffer; an R of NaN.
    """
    ctx.need("model", "data", "recipe")
    R, losses = _series(ctx)
    broken = [name for name, v in {**R, "loss": losses}.items() if not np.isfinite(v).all()]
    memory = {block: autocorrelation(values) - autocorrelation(losses) for block, values in R.items()}
    memory = {block: gap for block, gap in memory.items() if math.isfinite(gap)}
    if not memory and not broken:
        raise NotMeasurable("R is the same in every batch, see C22")
    worst = max(memory, key=memory.__getitem__, default=-1)
    return verdict(
        "C38",
        not broken and memory[worst] <= BUFFER,
        f"not a number: {', '.join(f'R of block {n}' if n in R else n for n in broken)}"
        if broken
        else f"autocorrelation {memory[worst]:+.2f} beyond that of the loss (block {worst})",
        f"<= {BUFFER:g}",
        "something is kept between calls: carry it in the cache, where a new text begins anew",
        memory={str(block): gap for block, gap in memory.items()},
    )


def _series(ctx: Context) -> tuple[dict[int, list[float]], list[float]]:
    """Block -> R of each batch, and the losses. Raises: NotMeasurable for a trace without R."""
    R: dict[int, list[float]] = {}
    losses = []
    for trace, loss in _passes(ctx):
        losses.append(loss)
        for block, value in mean_R(trace).items():
            R.setdefault(block, []).append(value)
    return R, losses


def _passes(ctx: Context) -> Iterable[tuple[dict, float]]:
    """Trace and mean loss of each batch; a stochastic model draws anew each time."""
    for i in range(BATCHES):
        rows = random_batch(ctx.data.train, ctx.seed, i, ROWS, short_context(ctx.recipe, CONTEXT)).tokens
        inputs, targets = split_rows(mx.array(rows))
        with training_mode(ctx.model, True):
            out = ctx.model.forward(inputs, **noise(ctx.model, i))
        nats, count = cross_entropy(out.logits, targets)
        yield out.trace, number(nats) / max(1, number(count))
