"""Can this task be learned at all, and would a score on it mean anything? Counting and the task's own oracle.

A task knows its rule, so what the best predictor reaches is known before any model is trained. Text has no
oracle; C29 asks it instead.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, require_value, verdict
from kssm_mlx.data.tasks import Task
from kssm_mlx.data.tokens import TokenSplit
from kssm_mlx.metrics.incontext import in_context

SEQUENCES, ORACLE_ROWS = 300, 48
ROOM = 0.05  # of accuracy between chance and the ceiling
GAIN, NO_GAIN = 0.05, 0.01
SIGMA = 5.0
ENTROPY = 0.1  # of ln V, of the targets at one place
FEWEST = 20  # rows that are scored at a place, before its entropy is judged


class Rows(NamedTuple):
    """Rows of a task. Shapes: ids int [N, L + 1]; scored bool [N, L + 1], never the first of a row; answers
    int [N, L + 1], what the places ask for, the ids themselves unless the task has labels.
    """

    ids: np.ndarray
    scored: np.ndarray
    answers: np.ndarray


def task_of(ctx: Context) -> Task:
    """Raises: NotMeasurable for text."""
    ctx.need("data")
    if ctx.data.task is None:
        raise NotMeasurable("the data is text, which has no known ceiling; C29 asks it")
    return ctx.data.task


def task_of_row(ctx: Context, row: dict) -> Task:
    """The task that an evaluation was made on: in a phase of the run its rows may be others."""
    task, recipe, phase = task_of(ctx), ctx.recipe, row.get("phase")
    if recipe is None or phase is None or phase > len(recipe.phases):
        return task
    return (recipe.make_task(recipe.phases[phase - 1].task) or task).at(row["context"])


def rows_of(split: TokenSplit, most: int = SEQUENCES) -> Rows:
    """The first rows of a split."""
    assert split.row is not None and split.scored is not None  # a task has both
    count = min(most, split.starts.size) * split.row
    parts = (split.ids, split.scored, split.answers)
    ids, scored, answers = (np.asarray(a[:count]).astype(np.int64).reshape(-1, split.row) for a in parts)
    return Rows(ids, scored.astype(bool) & (np.arange(split.row) > 0), answers)


@check("G1", level="P", title="the ceiling is above chance", source="docs/background/allostasis.md#ceilings")
def ceiling_above_chance(ctx: Context) -> Check:
    """acc*, the accuracy of the Bayes predictor that knows the generator and sees the past, in closed form or
    by Monte Carlo over 2,000 rows (`task.bound()`), less that of a guess among the answers.

    Threshold: >= 0.05: with less room no score says anything. Interleaved streams of 128: 0.9375 - 0.0002.
    Caught: the broken interleaved task, whose ceiling is chance: 50 epochs at three widths, all at 0 %.
    Sabotage: the broken task; the same vocabulary with one token left.
    """
    task = task_of(ctx)
    bound = task.bound()
    return verdict(
        "G1",
        bound.accuracy - task.chance >= ROOM,
        f"ceiling {bound.accuracy:.4f}, chance {task.chance:.4f}, floor {bound.nats:.3f} nats",
        f"ceiling - chance >= {ROOM:g}",
        "nobody can be better than a guess here: the rows have no rule",
        ceiling=bound.accuracy,
        chance=task.chance,
        floor=bound.nats,
    )


@check(
    "G2",
    level="P",
    title="there is a rule to learn",
    source="docs/background/allostasis.md#in-context-coders",
    false_alarm=1e-6,
)
def task_has_a_rule(ctx: Context) -> Check:
    """On the scored targets of up to 300 validation rows: the gain 1 - CL / ln V of the best adaptive coder
    that counts inside one row (orders 1 to 3, strides 1 to 4); and the accuracy of the task's own oracle, run
    on 48 of the rows, against the declared ceiling acc*. Of a labelled task the coder counts the labels.

    Threshold: learnable = the oracle reaches acc* - 5 standard errors, or gain >= 0.05. Refused = the
    declared floor is ln V of the answers, or the oracle misses its ceiling and gain < 0.01. Anything else
    warns. A gain is sufficient and not necessary: modular addition has none and is a rule. No coder may beat
    the floor by more than 5 standard errors.
    Caught: the broken interleaved task (gain 0.00 where the sound one has 0.92), which a corpus n-gram cannot
    tell from the sound one.
    Sabotage: the broken task; rows whose tokens were permuted.
    """
    task, rows = task_of(ctx), rows_of(ctx.data.validation)
    bound, coder = task.bound(), in_context(rows.answers, ctx.data.vocab_size, rows.scored)
    hits = oracle_hits(task, rows, ORACLE_ROWS)
    error = math.sqrt(max(bound.accuracy * (1 - bound.accuracy), 1 / hits.size) / hits.size)
    reached = hits.mean() >= bound.accuracy - SIGMA * math.hypot(error, bound.accuracy_se)
    nothing = bound.nats >= (1 - NO_GAIN) * -math.log(task.chance)
    if nothing or not (reached or coder.gain >= NO_GAIN):
        word = "fail"
    else:
        word = "pass" if reached or coder.gain >= GAIN else "warn"
    return verdict(
        "G2",
        word,
        f"gain {coder.gain:.2f} (order {coder.order}, stride {coder.stride}), oracle {hits.mean():.4f} of "
        f"{bound.accuracy:.4f}, floor {bound.nats:.3f} nats",
        f"oracle at its ceiling, or gain >= {GAIN:g} (none below {NO_GAIN:g}); floor below chance",
        "there is no rule in these rows: every answer is a guess (every token is drawn anew)"
        if nothing
        else "the rows do not follow their rule: make them anew, or look at the generator",
        gain=coder.gain,
        oracle=float(hits.mean()),
        floor=bound.nats,
        code_length=coder.code_length,
    )


def oracle_hits(task: Task, rows: Rows, most: int) -> np.ndarray:
    """Whether `task.predict` was right, at every scored target of the first rows. Shapes: [targets] bool."""
    return np.array(
        [
            says(task, ids[:t]) == answers[t]
            for ids, scored, answers in zip(*(a[:most] for a in rows), strict=True)
            for t in np.flatnonzero(scored)
        ]
    )


def says(task: Task, prefix: np.ndarray) -> int:
    """What the oracle answers after a prefix, -1 for a row that it cannot make sense of."""
    try:
        return task.predict(prefix)
    except (ValueError, IndexError):
        return -1


@check(
    "G3",
    level="S",
    title="better than a guess",
    source="docs/background/allostasis.md#chance",
    needs_training=True,
    false_alarm=1e-6,
)
def above_chance(ctx: Context) -> Check:
    """The last evaluation of the run: hits against Binomial(n, chance) over the n scored targets,
    z = (hits - n chance) / sqrt(n chance (1 - chance)).

    Threshold: z >= 5. It warns before step 500, where learning may not have begun.
    Caught: 50 epochs at 0.0 to 0.1 % where chance is 0.024 %, read as "hard".
    Sabotage: an accuracy of chance.
    """
    task_of(ctx)
    last = evaluations(ctx)[-1]
    task = task_of_row(ctx, last)
    n, chance = last["tokens"], task.chance
    z = (last["accuracy"] - chance) / math.sqrt(chance * (1 - chance) / n)
    return verdict(
        "G3",
        "pass" if z >= SIGMA else "warn" if ctx.step < 500 else "fail",
        f"accuracy {last['accuracy']:.4f}, chance {chance:.4f}, z {z:.1f} over {n} targets",
        f"z >= {SIGMA:g}",
        "nothing was learned: see G1 and G2 for the task, G7 for the memory, C7 and C8 for the trainer",
        z=z,
    )


def evaluations(ctx: Context) -> list[dict]:
    """The rows of the evaluations of a run. Raises: NotMeasurable where there was none."""
    found = [row for row in require_value(ctx.history, "history") if row.get("kind") == "eval"]
    if not found:
        raise NotMeasurable("the run has no evaluation yet")
    return found


@check(
    "G5",
    level="P",
    title="no target is known beforehand",
    source="docs/background/allostasis.md#targets-known-beforehand",
)
def target_entropy(ctx: Context) -> Check:
    """The entropy of the targets at each place of a row, over the validation rows in which it is scored;
    places with fewer than 20 such rows are not judged.

    Threshold: >= 0.1 ln V at every place (with N rows no more than ln N can be seen): a target that is nearly
    always the same is known without reading.
    Caught: modular addition scored at the last place, which was PAD in every row: "100 %", "93.4 %".
    Sabotage: modular addition with `whole_row`; one row repeated.
    """
    task_of(ctx)
    rows = rows_of(ctx.data.validation, most=2000)
    scored = np.flatnonzero(rows.scored.sum(axis=0) >= FEWEST)
    if not scored.size:
        raise NotMeasurable(f"no place is scored in {FEWEST} validation rows")
    entropy = {int(t): _entropy(rows.answers[rows.scored[:, t], t]) for t in scored}
    needed = ENTROPY * min(math.log(ctx.data.vocab_size), math.log(rows.ids.shape[0]))
    known = [t for t, nats in entropy.items() if not nats >= needed]
    least = min(entropy, key=entropy.__getitem__)
    return verdict(
        "G5",
        not known,
        f"{entropy[least]:.3f} nats at place {least}; {len(known)} of {len(entropy)} places known beforehand",
        f">= {needed:.3f} nats at every scored place",
        "do not score what is always the same (task option whole_row = false), or the score counts padding",
        known=known,
        least=entropy[least],
    )


def _entropy(ids: np.ndarray) -> float:
    p = np.unique(ids, return_counts=True)[1] / ids.size
    return float(-(p * np.log(p)).sum())
