"""Can the trainer teach this model anything? One batch, learned by heart."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from kssm_mlx.checks.core.conditions import log_softmax
from kssm_mlx.checks.core.model_size import count_parameters
from kssm_mlx.checks.core.probes import as_run, logits_of, short_context
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.data.batches import random_batch
from kssm_mlx.models.base import number, with_parameters
from kssm_mlx.training.loss_terms import parse_terms
from kssm_mlx.training.losses import split_rows
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step

STEPS, ROWS, LEARNING_RATE = 300, 4, 3e-3
LEARNED, GAP, SOME = 0.1, 0.5, 0.1
MOST = 100_000_000  # parameters that are trained 300 times within minutes


@check(
    "N18",
    level="S",
    title="one batch is learned by heart",
    source="docs/background/hybrids.md#overfitting-one-batch",
)
def learns_one_batch(ctx: Context) -> Check:
    """From the weights before step 1, the trainer's step with the recipe's [loss], [freeze] and [clamp] on
    one batch of 4 rows of at most 32 tokens, at most 300 times at a learning rate of 3e-3, until the
    cross-entropy is a tenth of what it was. Gap: the loss of the model that has learned the batch, on its
    rows with the targets permuted, less the loss on the true ones. Change: of the loss before step 1 when the
    targets are permuted.

    Threshold: loss < 0.1 of the first: a batch of 128 tokens fits into any model that gradients reach. Gap >
    0.5 nats: what was learned are these targets. Change > 0: the loss reads logits and targets. What
    [freeze] holds may put a tenth out of reach, as a head that stays as it was drawn: a gap > 0.1 nats warns.
    Caught: Attempt 3, whose logits were random tensors: 500 steps, and the loss stayed at ln V + 1/2.
    Sabotage: logits that are drawn; a learning rate of zero; a trainer that permutes the targets.
    """
    ctx.need("model", "data", "recipe")
    if count_parameters(ctx.model) > MOST:
        raise NotMeasurable(
            f"300 steps of {count_parameters(ctx.model):,} parameters; check a smaller size of it"
        )
    rows = random_batch(ctx.data.train, ctx.seed, 0, ROWS, short_context(ctx.recipe, 32)).tokens
    before = tree_unflatten(list((ctx.initial or {}).items()))
    got = with_parameters(ctx.model, before, lambda: _train_on_rows(ctx, rows))
    steps, (first, first_permuted), (last, last_permuted) = got
    change, gap = abs(first_permuted - first), last_permuted - last
    problems = [] if last < LEARNED * first else [f"loss {first:.3f} to {last:.3f} in {steps} steps"]
    problems += [] if gap > GAP else [f"permuted targets cost {gap:.2g} nats more"]
    problems += [] if change > 0 else ["the loss does not depend on the targets"]
    some = bool(ctx.masks) and gap > SOME and change > 0
    return verdict(
        "N18",
        "pass" if not problems else "warn" if some else "fail",
        "; ".join(problems)
        or f"loss {first:.3f} to {last:.3f} in {steps} steps, permuted targets {gap:.1f} nats more",
        f"< {LEARNED:g} of the first loss within {STEPS} steps, gap > {GAP:g} nats",
        "no gradient arrives (C7), nothing moves (C8), or the targets are not those of the inputs (C30)",
        steps=steps,
        first=first,
        last=last,
        gap=gap,
        change=change,
    )


def _train_on_rows(ctx: Context, rows: np.ndarray):
    """(steps taken, losses before, losses after), the losses those of the true and of permuted targets."""
    B, T = split_rows(mx.array(rows))[0].shape
    train = Train(
        batch_size=B, context=T, steps=STEPS, learning_rate=LEARNING_RATE, schedule="constant", warmup=5
    )
    held = {"masks": ctx.masks, "intervention": ctx.intervention, "loss": parse_terms(ctx.recipe.loss)}
    state, step = initial_state(ctx.model, train), make_step(ctx.model, train, **held, compile=False)
    before, steps, loss = _losses(ctx, state.params, rows), 0, math.inf
    while steps < STEPS and not loss < LEARNED / 2 * before[0]:
        state, metrics = step(state, mx.array(rows), None)
        mx.eval(state)
        steps, loss = steps + 1, number(metrics["loss"])
    return steps, before, _losses(ctx, state.params, rows)


def _losses(ctx: Context, params, rows: np.ndarray) -> tuple[float, float]:
    """Mean nats of the targets that are scored, as they are and permuted among each other."""
    inputs, targets = (np.array(a) for a in split_rows(mx.array(rows)))
    scored = targets >= 0
    p = log_softmax(with_parameters(ctx.model, params, lambda: logits_of(as_run(ctx), inputs)))[scored]
    permuted = np.random.default_rng(ctx.seed).permutation(targets[scored])
    both = (targets[scored], permuted)
    true, false = (-float(np.take_along_axis(p, t[:, None], -1).mean()) for t in both)
    return true, false
