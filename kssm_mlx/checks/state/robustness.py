"""What happens to a reader whose state is disturbed: by noise, by an opponent, by all that it read before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import mean_kl
from kssm_mlx.checks.core.probes import short_context, to_numpy, vocabulary_size
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, Verdict, check, verdict
from kssm_mlx.checks.core.state_recording import Views, refuse_stateless, view_states, with_views
from kssm_mlx.data.batches import random_batch
from kssm_mlx.models.base import Cache, number, training_mode
from kssm_mlx.training.losses import cross_entropy, cut_rows, split_rows, token_nats

ROWS, HALF = 8, 32
LEVEL = 0.1  # of the RMS of a memory, row by row
SOLVED = 0.01  # of ln V: a smaller loss is a task that is solved, and its ratios say nothing
READ = 1e-3  # nats by which a state of zeros must move the prediction
NOISE, ATTACK, DRIFT = (0.1, 0.5), (0.1, 0.5), (0.1, 0.25)  # warn, fail
STEPS, SESSIONS, READERS = 4, 8, 32
ALPHA = 1e-4  # of a growing drift: it is asked of every claim, and by every seed


@check(
    "D18",
    level="S",
    title="noise in the state is survived",
    source="docs/background/hybrids.md#noise-and-safety",
    needs_training=True,
)
def survives_noise(ctx: Context) -> Check:
    """8 rows of held-out text in two halves: the loss of the second half from the state that the first left,
    and from the same with Gaussian noise of a tenth of its RMS in every memory; (noisy - clean) / clean, with
    clean at least a hundredth of ln V, as a solved task has a loss of 0. And the KL of the prediction
    when the memories are zero.

    Threshold: <= 10 % (fails above 50 %). A state of zeros moves the prediction by 1e-3 nats, or the state is
    robust because nothing reads it, which warns.
    Caught: nothing by name; GroundThink only sketches "add noise to state, compare scores".
    Sabotage: a readout that amplifies the state by 1e3; a model that ignores its state.
    """
    start, second = _read_half(ctx)
    random = np.random.default_rng(ctx.seed)
    noisy = _disturb_state(
        ctx.model, start, lambda view: mx.array(random.standard_normal(view.shape), mx.float32)
    )
    empty = with_views(
        ctx.model, start, {n: mx.zeros_like(v) for n, v in view_states(ctx.model, start).items()}
    )
    clean, disturbed = (number(_loss(ctx.model, cache, second)) for cache in (start, noisy))
    read = mean_kl(*(_logits(ctx.model, cache, second) for cache in (start, empty)))
    rise = (disturbed - clean) / max(clean, SOLVED * math.log(vocabulary_size(ctx.model)))
    return verdict(
        "D18",
        _judge_value(rise, NOISE) if read >= READ or not rise <= NOISE[0] else "warn",
        f"loss {clean:.3f} to {disturbed:.3f} ({rise:+.1%}); a state of zeros moves it by {read:.2g} nats",
        f"<= {NOISE[0]:.0%} (fails above {NOISE[1]:.0%}), zeros >= {READ:g} nats",
        "a tenth of the state decides everything: look for a gain on the readout, or a norm of a small state"
        if read >= READ
        else "nothing reads the state, so nothing can disturb it: see C1 and D11",
        rise=rise,
        clean=clean,
        noisy=disturbed,
        zeros=read,
    )


@check(
    "D21",
    level="S",
    title="no small push poisons the state",
    source="docs/background/hybrids.md#noise-and-safety",
    needs_training=True,
)
def survives_poison(ctx: Context) -> Check:
    """As D18, with the worst direction in place of noise: 4 steps along the gradient of the loss of the
    second half with respect to the state, every memory of every row kept within a tenth of its RMS. The rise
    of the loss in units of ln V, beside that of noise of the same size.

    Threshold: <= 0.1 ln V (fails above 0.5 ln V): half of ln V takes a reader that knows much to one that
    knows little. The search is a lower bound: another may find worse.
    Caught: nothing by name; state poisoning is a risk that GroundThink lists and never tested.
    Sabotage: a readout that amplifies the state by 1e3.
    """
    start, second = _read_half(ctx)
    clean, worst = number(_loss(ctx.model, start, second)), _attack_state(ctx.model, start, second)
    random = np.random.default_rng(ctx.seed)
    noisy = _disturb_state(
        ctx.model, start, lambda view: mx.array(random.standard_normal(view.shape), mx.float32)
    )
    attacked, disturbed = (number(_loss(ctx.model, cache, second)) for cache in (worst, noisy))
    scale = math.log(vocabulary_size(ctx.model))
    rise = (attacked - clean) / scale
    return verdict(
        "D21",
        _judge_value(rise, ATTACK),
        f"loss {clean:.3f} to {attacked:.3f} ({rise:+.3f} ln V), by noise of that size to {disturbed:.3f}",
        f"<= {ATTACK[0]:g} ln V (fails above {ATTACK[1]:g})",
        "the prediction hangs on one direction of the state: reset between documents, or train with noise",
        rise=rise,
        clean=clean,
        attacked=attacked,
        noisy=disturbed,
    )


def _read_half(ctx: Context) -> tuple[Cache, mx.array]:
    """The state after the first half of rows of held-out text, and the second half with its targets."""
    ctx.need("model", "data", "recipe")
    refuse_stateless(ctx.model)
    length = short_context(ctx.recipe, 2 * HALF)
    rows = mx.array(random_batch(ctx.data.validation, ctx.seed, 0, ROWS, length).tokens)
    with training_mode(ctx.model, False):
        cache = ctx.model.forward(split_rows(rows)[0][:, : length // 2], None).cache
    view_states(ctx.model, cache)  # says at once where there is none
    return cache, cut_rows(rows, length // 2)


def _logits(model, cache: Cache, rows: mx.array) -> np.ndarray:
    with training_mode(model, False):
        return to_numpy(model.forward(split_rows(rows)[0], cache).logits)


def _loss(model, cache: Cache, rows: mx.array) -> mx.array:
    """Mean nats of the scored targets of `rows`, read from a cache."""
    inputs, targets = split_rows(rows)
    with training_mode(model, False):
        nats, count = cross_entropy(model.forward(inputs, cache).logits, targets)
    return nats / mx.maximum(count, 1)


def _disturb_state(model, cache: Cache, direction: Callable[[mx.array], mx.array]) -> Cache:
    """The cache with every memory moved by LEVEL of its RMS along a direction, row by row."""
    before = view_states(model, cache)
    return with_views(model, cache, {n: v + _limit_change(direction(v), v) for n, v in before.items()})


def _limit_change(change: mx.array, view: mx.array) -> mx.array:
    """`change`, as long as LEVEL of the row of `view` it belongs to; none where it is zero."""
    length = mx.linalg.norm(change, axis=-1, keepdims=True)
    allowed = LEVEL * mx.linalg.norm(view, axis=-1, keepdims=True)
    return change * mx.where(length > 0, allowed / mx.maximum(length, 1e-30), 0)


def _attack_state(model, cache: Cache, rows: mx.array) -> Cache:
    """The cache at the end of the search."""
    before = {name: mx.stop_gradient(view) for name, view in view_states(model, cache).items()}

    def loss(change: Views) -> mx.array:
        return _loss(model, with_views(model, cache, {n: before[n] + c for n, c in change.items()}), rows)

    change = {name: mx.zeros_like(view) for name, view in before.items()}
    for _ in range(STEPS):
        found = mx.grad(loss)(change)
        change = {
            n: _limit_change(change[n] + _limit_change(found[n], view) / 2, view)
            for n, view in before.items()
        }
        mx.eval(change)
    return with_views(model, cache, {n: before[n] + c for n, c in change.items()})


@check(
    "N14",
    level="G",
    title="old sessions leave no bias",
    source="docs/background/hybrids.md#noise-and-safety",
    needs_training=True,
    false_alarm=ALPHA,
)
def old_sessions_leave_no_bias(ctx: Context) -> Check:
    """8 sessions, each one context of unrelated held-out text in 32 rows, the state handed on without a
    reset; after each the same probe of 32 tokens is read from it, and from a fresh state. Drift: the loss of
    the probe less that from a fresh state, the mean of the last four sessions, in units of ln V. And whether
    it still grows: its slope over the sessions in each row, and p (one-sided, Student's t) of a mean above 0.
    The rows are texts of their own; the costs of one row after one session and the next are not independent.

    Threshold: <= 0.1 ln V (fails above 0.25 ln V): a state that settles costs a bias and not more with every
    session; models trained for seconds on windows that began at zero have 0.01 to 0.07. A slope with
    p < 0.0001 warns, where the drift is above a twentieth of the limit. After a reset it is 0, see D13.
    Caught: nothing by name; "bias accumulating in state" is a risk that GroundThink lists and never tested.
    Sabotage: a state that is never forgotten and grows until it drowns the probe; one that grows slowly.
    """
    ctx.need("model", "data", "recipe")
    refuse_stateless(ctx.model)
    if ctx.data.task is not None:
        raise NotMeasurable("the rows of a task do not go on into each other")
    fresh, after = _sessions(ctx)
    costs = (after - fresh) / math.log(vocabulary_size(ctx.model))
    late, (slope, p) = float(costs[-SESSIONS // 2 :].mean()), growth(costs)
    word = _judge_value(late, DRIFT)
    return verdict(
        "N14",
        "warn" if word == "pass" and p < ALPHA and late > DRIFT[0] / 20 else word,
        f"the probe costs {late:+.4f} ln V after {SESSIONS} sessions, slope {slope:+.2g} (p {p:.2g})",
        f"<= {DRIFT[0]:g} ln V (fails above {DRIFT[1]:g}), p >= {ALPHA:g}",
        "what was read long ago biases what is said now: reset between documents (D13), or let it decay (D8)",
        costs=costs.mean(axis=1).tolist(),
        slope=slope,
        p=p,
    )


def growth(costs: np.ndarray) -> tuple[float, float]:
    """(mean slope per session, p of a mean above 0), of one slope a row. Shapes: [sessions, rows]."""
    sessions = np.arange(len(costs)) - (len(costs) - 1) / 2
    slopes = sessions @ costs / (sessions @ sessions)
    if not np.isfinite(slopes).all() or np.ptp(slopes) == 0:
        return float(slopes.mean()), math.nan
    from scipy.stats import ttest_1samp

    test: Any = ttest_1samp(slopes, 0.0, alternative="greater")
    return float(slopes.mean()), float(test.pvalue)


def _sessions(ctx: Context) -> tuple[np.ndarray, np.ndarray]:
    """(loss of each row of the probe from a fresh state, after each session). Shapes: [rows], [sessions,
    rows].
    """
    model, length = ctx.model, min(ctx.recipe.train.context, 128)
    probe, *sessions = (
        mx.array(random_batch(ctx.data.validation, ctx.seed, i, READERS, length).tokens)
        for i in range(SESSIONS + 1)
    )
    probe = cut_rows(probe, 0, HALF)
    fresh, cache, after = _row_losses(model, None, probe), None, []
    for rows in sessions:
        with training_mode(model, False):
            cache = model.forward(split_rows(rows)[0], cache).cache
        view_states(model, cache)
        after.append(_row_losses(model, cache, probe))
    return fresh, np.stack(after)


def _row_losses(model, cache: Cache | None, rows: mx.array) -> np.ndarray:
    """Mean nats of the scored targets of each row, read from a cache. Shapes: [rows]."""
    inputs, targets = split_rows(rows)
    with training_mode(model, False):
        nats = token_nats(model.forward(inputs, cache).logits, targets).sum(axis=1)
    return to_numpy(nats / mx.maximum((targets >= 0).sum(axis=1), 1))


def _judge_value(value: float, limits: tuple[float, float]) -> Verdict:
    warn, fail = limits
    return "pass" if value <= warn else "warn" if value <= fail else "fail"
