"""What does a cheaper strategy get? A score that a fixed filter reaches is no sign of reading content."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.checks.data.task_learnability import Rows, rows_of, says, task_of
from kssm_mlx.data.tasks import Task

TARGETS, TEST, PLACES, LAGS = 1200, 150, 8, 48
STEPS, RATE = 150, 0.1
WARN, FAIL = 0.2, 0.05
# Not -inf: where no lag votes, the gradient of logsumexp would be NaN.
NEVER = -1e9


@check(
    "G10",
    level="G",
    title="the score asks for content",
    source="docs/background/allostasis.md#cheaper-strategies",
)
def content_is_needed(ctx: Context) -> Check:
    """acc* of the task's oracle less the accuracy of the best predictor without content, on the same scored
    targets of 150 validation rows, at up to 8 places. That predictor is a vote: each of the last 48 tokens
    gives its token a weight > 0 that depends on the lag alone, fitted by cross-entropy on 1,600 training
    targets; tokens that are never a target have no vote. One layer of attention that scores positions can do
    as much.

    Threshold: >= 0.2 on all scored targets (warns from 0.05, fails below); named places are reported. The
    interleaved task: 0.2 on all targets, 0 on the last one, 0.6 with jitter 0.2. Weights below 0,
    which a convolution has, get 0.75 of the jittered one as well: against those the score proves little.
    Caught: last-position accuracy as evidence for routing: a fixed kernel has 1.000.
    Sabotage: the interleaved task scored at its last place only; the copy task.
    """
    task, test = task_of(ctx), rows_of(ctx.data.validation, TEST)
    places = _places(test.scored)
    train = rows_of(ctx.data.train, TARGETS // places.size)
    answers = np.unique(np.asarray(ctx.data.train.answers)[np.asarray(ctx.data.train.scored) > 0])
    voted = _vote_hits(_contexts(train, places, answers), _contexts(test, places, answers))
    known = np.array([_is_oracle_right(task, test, t) for t in places])
    named = [task.places(row) for row in test.ids]
    masks = {"scored": np.ones_like(known)} | {
        name: np.stack([row[name][places - 1] for row in named], axis=1) for name in named[0]
    }
    scored = test.scored[:, places].T
    gaps = {name: _gap(known, voted, mask & scored) for name, mask in masks.items() if (mask & scored).any()}
    gap = gaps["scored"]
    parts = "".join(f", {name} {other:.2f}" for name, other in gaps.items() if name != "scored")
    return verdict(
        "G10",
        "pass" if gap >= WARN else "warn" if gap >= FAIL else "fail",
        f"{gap:.3f}: oracle {known[scored].mean():.3f}, fixed lags {voted[scored].mean():.3f}{parts}",
        f">= {WARN:g} (fails below {FAIL:g})",
        "a filter by lag solves this: score other places, or let noise shift the lags (task option jitter)",
        gaps=gaps,
    )


def _is_oracle_right(task: Task, rows: Rows, t: int) -> list[bool]:
    """Whether the oracle answers place t of each row."""
    return [says(task, ids[:t]) == answers[t] for ids, answers in zip(rows.ids, rows.answers, strict=True)]


def _gap(known: np.ndarray, voted: np.ndarray, chosen: np.ndarray) -> float:
    return float(known[chosen].mean() - voted[chosen].mean())


def _places(scored: np.ndarray) -> np.ndarray:
    """Up to 8 of the places that are scored in some row, evenly, the last one among them."""
    found = np.flatnonzero(scored.any(axis=0))
    if not found.size:
        raise NotMeasurable("no target is scored")
    return found[np.unique(np.linspace(0, found.size - 1, PLACES).round().astype(int))]


class Votes(NamedTuple):
    """What votes at each place. Shapes: tokens int [P, N, K], by lag; valid bool [P, N, K]; targets [P, N];
    scored bool [P, N].
    """

    tokens: np.ndarray
    valid: np.ndarray
    targets: np.ndarray
    scored: np.ndarray


def _contexts(rows: Rows, places: np.ndarray, answers: np.ndarray) -> Votes:
    at = places[:, None] - 1 - np.arange(min(LAGS, places.max()))
    tokens = rows.ids[:, np.maximum(at, 0)].swapaxes(0, 1)
    valid = (at >= 0)[:, None] & np.isin(tokens, answers)
    return Votes(tokens, valid, rows.answers[:, places].T, rows.scored[:, places].T)


def _vote_hits(train: Votes, test: Votes) -> np.ndarray:
    """Whether the fitted vote is right on the test rows. Shapes: bool [P, N]."""
    weights = _fit_lag_weights(
        *_compare_lags(train), mx.array(train.tokens == train.targets[..., None]), train.scored
    )
    alike, free = _compare_lags(test)
    best = np.array(mx.argmax(_slots(weights, alike, free), axis=-1))
    chosen = np.take_along_axis(test.tokens, best[..., None], axis=-1)[..., 0]
    return (chosen == test.targets) & test.valid.any(axis=-1)


def _compare_lags(votes: Votes) -> tuple[mx.array, mx.array]:
    """(which lags hold the same token [P, N, K, K], -ln of how many do or, where there is no vote, never)."""
    both = votes.valid[..., None] & votes.valid[..., None, :]
    alike = (votes.tokens[..., None] == votes.tokens[..., None, :]) & both
    free = np.where(votes.valid, -np.log(np.maximum(alike.sum(axis=-1), 1)), NEVER)
    return mx.array(alike, mx.float32), mx.array(free, mx.float32)


def _slots(weights: mx.array, alike: mx.array, free: mx.array) -> mx.array:
    """Log-share of the vote that falls on the token at each lag, split among its lags. Shapes: [P, N, K]."""
    return alike @ mx.exp(weights) + free


def _fit_lag_weights(alike: mx.array, free: mx.array, right: mx.array, scored: np.ndarray) -> mx.array:
    """Log-weights [K] by Adam; targets that no lag holds teach nothing."""
    counts = mx.array(scored) & mx.any(right & (free > NEVER / 2), axis=-1)

    def loss(weights: mx.array) -> mx.array:
        slots = _slots(weights, alike, free)
        hit = mx.logsumexp(mx.where(right, slots, NEVER), axis=-1) - mx.logsumexp(slots, axis=-1)
        return -mx.sum(mx.where(counts, hit, 0)) / mx.maximum(mx.sum(counts), 1)

    optimizer, weights = optim.Adam(optim.linear_schedule(RATE, 0.0, STEPS)), mx.zeros(alike.shape[-1])
    for _ in range(STEPS):
        gradient = {"weights": mx.grad(loss)(weights)}
        weights = optimizer.apply_gradients(gradient, {"weights": weights})["weights"]
        mx.eval(weights, optimizer.state)
    return weights
