"""While a model learns a task: is it too good to be true, or has it not begun?"""

from __future__ import annotations

import math

from kssm_mlx.checks.core.probes import as_run
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.checks.data.task_learnability import evaluations, task_of, task_of_row
from kssm_mlx.data.batches import evaluation_windows
from kssm_mlx.data.tasks.ceilings import Bound
from kssm_mlx.training.evaluation import evaluate

SIGMA = 5.0
LATEST, LEAST = 500, 0.10


@check(
    "G6",
    level="R",
    also="S",
    title="nobody beats the ceiling",
    source="docs/background/allostasis.md#ceilings",
    needs_training=True,
    false_alarm=1e-5,
)
def leak_alarm(ctx: Context) -> Check:
    """Every evaluation of the run (without one, the model on the recipe's evaluation windows) against the
    Bayes predictor of the rows it was made on, in standard errors: (accuracy - acc*) and (H* -
    cross-entropy). The error of the accuracy is binomial over the scored targets, that of the loss is over
    the windows; both with the error of a bound that was sampled. The future itself is changed in C2.

    Threshold: <= 5 on both. No causal model is better than the one that knows the generator: it saw the
    answer.
    Caught: transformers without a causal mask: 0.9999 on all places of the interleaved task, whose ceiling is
    0.9375; 99.4 % token accuracy on TinyStories.
    Sabotage: a model that reads the next token; a log with a loss below the floor.
    """
    bounds = {row.get("step", ctx.step): (row, task_of_row(ctx, row).bound()) for row in _scores(ctx)}
    found = [(z, word, step) for step, at in bounds.items() for word, z in _errors_beyond(*at)]
    z, word, step = max(found)
    bound = bounds[step][1]
    return verdict(
        "G6",
        z <= SIGMA,
        f"{word} {z:+.1f} standard errors beyond the best possible (step {step})",
        f"<= {SIGMA:g}: accuracy {bound.accuracy:.4f}, loss {bound.nats:.4f}",
        "the answer is in the input: look for a missing causal mask (C2), or targets that are inputs (C30)",
        z=z,
        step=step,
        ceiling=bound.accuracy,
        floor=bound.nats,
    )


def _scores(ctx: Context) -> list[dict]:
    """The evaluations of the run, or one made now."""
    logged = [row for row in ctx.history or () if row.get("kind") == "eval"]
    if logged:
        return logged
    ctx.need("model", "recipe")
    train = ctx.recipe.train
    windows = evaluation_windows(ctx.data.validation, ctx.recipe.eval.tokens, train.context, train.batch_size)
    return [evaluate(as_run(ctx), windows, ctx.data.bytes_per_target)]


def _errors_beyond(row: dict, bound: Bound) -> list[tuple[str, float]]:
    """How many standard errors the accuracy is above its ceiling, and the loss below its floor."""
    n = row["tokens"]
    binomial = math.sqrt(max(bound.accuracy * (1 - bound.accuracy), 1 / n) / n)
    above = (row["accuracy"] - bound.accuracy) / math.hypot(binomial, bound.accuracy_se)
    # A log has None where a number was not finite: the error of one window, the loss of a model that broke.
    error = max(math.hypot(_number(row["se"], 0.0), bound.nats_se), 1e-6)
    below = (bound.nats - _number(row["nats_per_token"], math.inf)) / error
    return [("accuracy", above), ("loss", below)]


def _number(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise


@check(
    "G11", level="R", title="learning has begun", source="docs/background/allostasis.md#has-learning-begun"
)
def learning_has_begun(ctx: Context) -> Check:
    """The skill on the tail of the streams, (accuracy - floor) / (acc* - floor) where every period has been
    seen, at the last evaluation, once 500 steps are done.

    Threshold: >= 0.10, measured for models of 128 channels, which reach 0.25 after one epoch of 10,000 rows.
    Tasks without a tail begin late and suddenly, and are not judged.
    Caught: runs of 50 epochs that stood at 0 % from the first.
    Sabotage: a log that stays at chance.
    """
    task_of(ctx)
    if ctx.step < LATEST:
        raise NotMeasurable(f"{ctx.step} steps done, {LATEST} needed")
    last = evaluations(ctx)[-1]
    if "skill_tail" not in last:
        raise NotMeasurable("the task has no tail; only of one is known when learning begins")
    return verdict(
        "G11",
        last["skill_tail"] >= LEAST,
        f"tail skill {last['skill_tail']:.3f} after {last['step']} steps",
        f">= {LEAST:g} after {LATEST} steps",
        "stop: see G1, G2 and G5 for the task, G7 for the memory, then C7 and the learning rate",
        skill=last["skill_tail"],
    )
