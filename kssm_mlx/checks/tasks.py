"""Is a synthetic task worth training on, and is a score on it possible? Its oracle and its bounds know."""

from __future__ import annotations

import math

import numpy as np

from kssm_mlx.checks.base import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.data.batches import evaluation_windows
from kssm_mlx.data.tasks import Task
from kssm_mlx.models.base import mode
from kssm_mlx.training.evaluation import evaluate

ROWS, ORACLE_ROWS = 2000, 40  # validation rows whose targets are counted, and that the oracle predicts


@check(
    "G1",
    level="P",
    title="the task has a rule, and is scored where it matters",
    source="allostasis.md G1, G2, G5",
)
def rule(ctx: Context) -> Check:
    """The task's oracle predicts every scored target of up to 40 validation rows from what stands before it,
    against the ceiling of the best causal predictor; that ceiling less what counts as no skill; and the least
    entropy of the targets at one scored position, over up to 2,000 rows, relative to that of as many rows
    drawn from the vocabulary at random.

    Threshold: the oracle within 5 standard errors of the ceiling, so the rule is in these rows; ceiling -
    baseline >= 0.05; entropy >= 0.1, or a constant answer is already good. What is found by counting on text
    (C29) is decided here for tasks: a sum has no context that comes twice.
    Caught: the interleaved task with random streams, trained for 50 epochs; modular addition whose last
    target was the padding in every row, "100 %".
    Sabotage: random streams; rows that do not follow the rule; whole rows scored.
    """
    task = _task(ctx)
    rows = ctx.data.validation.ids.reshape(-1, ctx.data.validation.row)[:ROWS].astype(np.int64)
    scored = ctx.data.validation.scored.reshape(-1, ctx.data.validation.row)[:ROWS].astype(bool)
    hits = _oracle(task, rows[:ORACLE_ROWS], scored[:ORACLE_ROWS])
    ceiling, reach = task.bound().accuracy, task.bound().accuracy - task.baseline
    short = (ceiling - hits.mean()) / _error(ceiling, hits.size)
    entropy = _least_entropy(rows, scored, ctx.data.vocab_size)
    return verdict(
        "G1",
        short <= 5 and reach >= 0.05 and entropy >= 0.1,
        f"oracle {hits.mean():.4f} of a ceiling of {ceiling:.4f}, {reach:.4f} above no skill, "
        f"least entropy of a scored position {entropy:.2f}",
        "oracle within 5 SE of the ceiling, reach >= 0.05, entropy >= 0.1",
        "nothing can be learned where it is scored: look at data.task, and at which targets are scored",
        oracle=float(hits.mean()),
        ceiling=ceiling,
        reach=reach,
        entropy=entropy,
    )


@check(
    "G6",
    level="S",
    title="no score is better than anybody can have",
    source="allostasis.md G6",
    needs_training=True,
)
def possible(ctx: Context) -> Check:
    """Accuracy and nats per scored target of the model on the recipe's evaluation windows, against the
    ceiling and the floor of the best causal predictor.

    Threshold: accuracy <= ceiling + 5 SE and nats >= floor - 5 SE: beyond it the answer was seen.
    Caught: a transformer without a causal mask, 99.99 % on a task whose ceiling is 93.75 %.
    Sabotage: a model that reads the next token.
    """
    task = _task(ctx)
    ctx.need("model", "recipe")
    train = ctx.recipe.train
    windows = evaluation_windows(ctx.data.validation, ctx.recipe.eval.tokens, train.context, train.batch_size)
    with mode(ctx.model, False):
        got = evaluate(ctx.model, windows, ctx.data.bytes_per_token_validation, task)
    bound = task.bound()
    above = got["accuracy"] - bound.accuracy - 5 * (_error(bound.accuracy, got["tokens"]) + bound.accuracy_se)
    below = bound.nats - 5 * (np.nan_to_num(got["se"]) + bound.nats_se) - got["nats_per_token"]
    return verdict(
        "G6",
        above <= 0 and below <= 0,
        f"accuracy {got['accuracy']:.4f}, {got['nats_per_token']:.4f} nats",
        f"accuracy <= {bound.accuracy:.4f} + 5 SE, nats >= {bound.nats:.4f} - 5 SE",
        "the model sees its targets: see C2, and the mask of its attention",
        accuracy=got["accuracy"],
        nats=got["nats_per_token"],
        ceiling=bound.accuracy,
        floor=bound.nats,
    )


def _task(ctx: Context) -> Task:
    ctx.need("data")
    if ctx.data.task is None:
        raise NotMeasurable("the data is text; a task has a rule and bounds")
    return ctx.data.task


def _oracle(task: Task, rows: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Whether the oracle predicts each scored target. Shapes: rows, scored [N, L + 1] -> [targets]."""
    places = zip(*np.nonzero(scored), strict=True)
    return np.array([task.predict(rows[i, :t]) == rows[i, t] for i, t in places])


def _error(share: float, n: int) -> float:
    """The standard error of a share of n, and never less than that of one in n."""
    return math.sqrt(max(share * (1 - share), 1 / n) / n)


def _least_entropy(rows: np.ndarray, scored: np.ndarray, vocab_size: int) -> float:
    """Over positions that every row scores: the entropy of the targets, relative to the most there can be."""
    places = np.flatnonzero(scored.all(axis=0))
    most = math.log(min(vocab_size, len(rows)))
    return min((_entropy(rows[:, t]) / most for t in places), default=1.0)


def _entropy(ids: np.ndarray) -> float:
    shares = np.unique(ids, return_counts=True)[1] / ids.size
    return max(0.0, float(-(shares * np.log(shares)).sum()))
