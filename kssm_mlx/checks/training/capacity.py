"""Two short trainings that say what a score is worth: on targets that mean nothing, and on rows by heart."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.model_size import count_parameters
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.checks.data.task_learnability import SIGMA, rows_of, task_of
from kssm_mlx.checks.training.overfit import MOST
from kssm_mlx.data.batches import evaluation_windows, random_batch
from kssm_mlx.models import FAMILIES, build
from kssm_mlx.models.base import LanguageModel, number, with_parameters
from kssm_mlx.training.evaluation import evaluate
from kssm_mlx.training.losses import cross_entropy, split_rows
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import Totals, make_update

SHUFFLED_STEPS, HEART_STEPS, BATCH, RATE = 60, 600, 16, 3e-3
BY_HEART, ROWS = 0.1, 64
SLACK = 0.02  # nats below what a guess costs
EVERY = 50


@check(
    "G4",
    level="G",
    title="shuffled targets teach nothing",
    source="docs/background/allostasis.md#shuffled-targets",
    false_alarm=1e-6,
)
def no_learning_on_permuted_targets(ctx: Context) -> Check:
    """A fresh model of the same configuration learns 60 steps of 16 rows whose targets were permuted across
    rows, place by place, which leaves them their frequencies and nothing else. Then it is scored on the true
    validation rows. (Within a row a constant guess would keep what it knows.)

    Threshold: accuracy <= chance + 5 standard errors, loss >= ln(1 / chance) - 0.02: better, and the score
    counts something that is not in the task's rule.
    Caught: modular addition scored at its padding, "100 %" whatever the targets.
    Sabotage: modular addition with `whole_row`; a model that reads the next token.
    """
    task, train = task_of(ctx), rows_of(ctx.data.train, most=SHUFFLED_STEPS * BATCH)
    # Place by place and not within a row: how often a target stands where stays known, and nothing else.
    targets = _permute_targets(np.where(train.scored, train.answers, -1)[:, 1:], ctx.seed)
    model = _build_fresh_model(ctx)

    def batch(i: int) -> tuple[mx.array, mx.array]:
        rows = np.arange(i * BATCH, (i + 1) * BATCH) % len(targets)
        return mx.array(train.ids[rows, :-1]), mx.array(targets[rows])

    _train(model, batch, SHUFFLED_STEPS)
    length, chance = task.length, task.chance
    windows = evaluation_windows(ctx.data.validation, 200 * length, length, BATCH)
    got = evaluate(model, windows, ctx.data.bytes_per_target)
    most = chance + SIGMA * math.sqrt(chance * (1 - chance) / got["tokens"])
    least = -math.log(chance) - SLACK
    return verdict(
        "G4",
        got["accuracy"] <= most and got["nats_per_token"] >= least,
        f"accuracy {got['accuracy']:.4f}, {got['nats_per_token']:.3f} nats after shuffled targets",
        f"accuracy <= {most:.4f}, >= {least:.3f} nats",
        "the score counts what no rule is needed for (G5), or the model sees its targets (C2, G6)",
        accuracy=got["accuracy"],
        nats=got["nats_per_token"],
    )


def _permute_targets(targets: np.ndarray, seed: int) -> np.ndarray:
    """Targets permuted among the rows in which a place is scored. Shapes: [N, L]."""
    random, mixed = np.random.default_rng(seed), targets.copy()
    for place in range(targets.shape[1]):
        rows = np.flatnonzero(targets[:, place] >= 0)
        mixed[rows, place] = targets[random.permutation(rows), place]
    return mixed


@check("G9", level="G", title="the model can hold the task", source="docs/background/allostasis.md#capacity")
def model_holds_the_task(ctx: Context) -> Check:
    """A fresh model of the same configuration learns 64 training rows, at most 600 steps of 16 rows at a
    learning rate of 3e-3, until their loss is below the threshold. Works on rows without a rule as well: what
    fits by heart and gains nothing on validation is memorisation.

    Threshold: loss < 0.1 ln V beyond what rows that begin alike leave open: a model that cannot hold 64 rows
    will not hold their rule in another way either, or the trainer does not reach its weights.
    Caught: a width blamed for 0 % on the broken task; the rows could be learned by heart.
    Sabotage: a learning rate of zero in effect (frozen weights); a model that reads every token alone.
    """
    task_of(ctx)
    rows = random_batch(ctx.data.train, ctx.seed, 0, ROWS, ctx.data.task.length).tokens
    inputs, targets = split_rows(mx.array(rows))
    limit = BY_HEART * math.log(ctx.data.vocab_size) + _open(np.array(inputs), np.array(targets))
    model = _build_fresh_model(ctx)

    def batch(i: int) -> tuple[mx.array, mx.array]:
        # In order: every row is met equally often, so that none is left out by the draw.
        part = slice(i * BATCH % ROWS, i * BATCH % ROWS + BATCH)
        return inputs[part], targets[part]

    loss, steps = _loss(model, inputs, targets), 0
    while steps < HEART_STEPS and not loss < limit:
        _train(model, batch, EVERY)
        loss, steps = _loss(model, inputs, targets), steps + EVERY
    return verdict(
        "G9",
        loss < limit,
        f"loss {loss:.3f} on {ROWS} rows after {steps} steps",
        f"< {limit:.3f} nats within {HEART_STEPS} steps",
        "too small, or nothing is learned: see C7, C8 and N18, then a larger size",
        loss=loss,
        steps=steps,
    )


def _open(inputs: np.ndarray, targets: np.ndarray) -> float:
    """Nats per scored target that are left to somebody who knows these rows by heart: the entropy of what
    follows equal beginnings. Shapes: [N, L], targets below zero where they are not scored.
    """
    nats, count = 0.0, 0
    for place in np.flatnonzero((targets >= 0).any(axis=0)):
        rows = targets[:, place] >= 0
        read, asked = inputs[rows, : place + 1], targets[rows, place]
        _, alike, counts = np.unique(read, axis=0, return_inverse=True, return_counts=True)
        pairs = np.column_stack([alike.ravel(), asked])
        _, same, together = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
        nats += np.log(counts[alike.ravel()] / together[same.ravel()]).sum()
        count += rows.sum()
    return float(nats / count)


def _build_fresh_model(ctx: Context) -> LanguageModel:
    """A model of the same configuration before step 1. Raises: NotMeasurable where none can be made."""
    if ctx.builder is not None:
        model = ctx.builder(ctx.seed)
    # A run in another folder has no builder; its configuration says as much.
    elif getattr(ctx.config, "model_type", None) in FAMILIES:
        model = build(ctx.config, ctx.seed)
    else:
        raise NotMeasurable("no fresh model can be made: neither a builder nor a configuration of ours")
    if count_parameters(model) > MOST:
        raise NotMeasurable(
            f"hundreds of steps of {count_parameters(model):,} parameters; check a smaller size of it"
        )
    return model


def _train(model: LanguageModel, batch: Callable[[int], tuple[mx.array, mx.array]], steps: int) -> None:
    """Steps of the trainer's optimiser on (inputs, targets), in place."""
    recipe = Train(steps=steps, learning_rate=RATE, schedule="constant", warmup=5)
    state, update = initial_state(model, recipe), make_update(model, recipe)

    def objective(params, inputs: mx.array, targets: mx.array):
        return cross_entropy(with_parameters(model, params, lambda: model(inputs)), targets)

    for i in range(steps):
        (nats, count), grads = mx.value_and_grad(objective)(state.params, *batch(i))
        state, _ = update(state, Totals(grads, nats, count, {}, {}))
        mx.eval(state)
    model.update(state.params)


def _loss(model: LanguageModel, inputs: mx.array, targets: mx.array) -> float:
    nats, count = cross_entropy(model(inputs), targets)
    return number(nats) / max(1, number(count))
