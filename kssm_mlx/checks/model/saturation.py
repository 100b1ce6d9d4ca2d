"""Do clips and barriers leave anything to learn? What rests on a floor or a ceiling has no gradient."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import noise, read_passage, run_arm
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.models.base import number, training_mode, with_parameters
from kssm_mlx.training.loss_terms import parse_terms
from kssm_mlx.training.optimizers.gradients import global_norm

WARN, FAIL = 0.5, 0.05
ALIVE = 1e-8


@check(
    "C24",
    level="R",
    also="S",
    title="clips leave something to learn",
    source="docs/background/k-ssm.md#u-on-its-floor",
    needs_training=True,
    passes=1,
)
def hit_rate(ctx: Context) -> Check:
    """What a block clips it writes into the trace twice, as "block00/u_raw" and "block00/u". On 8 rows of
    held-out text: the share of values on the floor (u > u_raw), on the ceiling (u < u_raw) and on neither,
    per block. A hard clip passes the gradient of the last ones and of no others: they are still trained.

    Threshold: of what is trained warn below 50 %, fail below 5 %; values that are not numbers fail.
    Caught: v3 at "u = 0.10", celebrated as surfing the edge: 96 % and more of the tokens on the floor of u.
    Sabotage: a bias that pushes every value below the floor; values half on the floor and half on the
    ceiling; a value of NaN.
    """
    ctx.need("model")
    rates = clip_shares(run_arm(ctx.model, read_passage(ctx), ctx.seed).trace)
    if not rates:
        raise NotMeasurable('nothing is clipped: no "block00/u_raw" beside a "block00/u" in the trace')
    name, (floor, ceiling, trained) = min(rates.items(), key=lambda item: np.nan_to_num(item[1][2]))
    return verdict(
        "C24",
        "pass" if trained >= WARN else "warn" if trained >= FAIL else "fail",
        f"{name}: {floor:.1%} on the floor, {ceiling:.1%} on the ceiling, {trained:.1%} trained",
        f">= {WARN:.0%} trained (fails below {FAIL:.0%})",
        "what rests on a clip is a constant: widen it, drop the term that pushes there, or squash smoothly",
        rates=rates,
    )


def clip_shares(trace: dict[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    """Name -> shares of the values on the floor, on the ceiling and on neither of everything that the trace
    has raw and clipped; NaN where one of them is.
    """
    pairs = {name.removesuffix("_raw"): raw for name, raw in trace.items() if name.endswith("_raw")}
    return {name: _shares(trace[name] - raw) for name, raw in pairs.items() if name in trace}


def _shares(lifted: np.ndarray) -> tuple[float, float, float]:
    """Of what a clip added: above, below and equal to 0."""
    sides = np.sign(lifted)  # NaN of NaN
    floor, ceiling = np.mean(sides > 0), np.mean(sides < 0)
    return float(floor), float(ceiling), float(1 - np.mean(np.abs(sides)))


@check(
    "C25",
    level="R",
    also="S",
    title="barriers push back",
    source="docs/background/k-ssm.md#u-on-its-floor",
    passes=12,
)
def barriers_push_back(ctx: Context) -> Check:
    """For every term of the recipe's [loss] and every part that it is made of: its value, and the norm of its
    gradient over all trainable parameters, on 8 rows of held-out text. A part whose value is 0 is not active
    and not judged.

    Threshold: norm > 1e-8 while active: below it, the number in the log is not something that training feels.
    Caught: the log barrier of v3 on a clamped u: 1.13 in every row of the log, and no gradient; every U, tone
    and EOS term that was a Python float.
    Sabotage: a barrier on a u that rests on its floor; a term that is a constant.
    """
    ctx.need("model", "recipe")
    if not ctx.recipe.loss:
        raise NotMeasurable("the recipe adds no term to the loss")
    felt = {name: _measure_gradient(ctx, name) for name in _parts(ctx, ctx.model.trainable_parameters())}
    dead = [name for name, (value, norm) in felt.items() if value != 0 and not norm > ALIVE]
    least = (dead or sorted(felt, key=lambda name: felt[name][1]))[0]
    return verdict(
        "C25",
        not dead,
        f"{least} is {felt[least][0]:.3g} and has a gradient of {felt[least][1]:.1e}",
        f"> {ALIVE:g} of every active part",
        f"{', '.join(dead)}: a clip or a detached number comes between the parameters and the term",
        felt={name: list(pair) for name, pair in felt.items()},
    )


def _measure_gradient(ctx: Context, name: str) -> tuple[float, float]:
    """(value, norm of the gradient) of one part."""
    value, gradient = mx.value_and_grad(lambda p: _parts(ctx, p)[name])(ctx.model.trainable_parameters())
    return number(value), number(global_norm(gradient))


def _parts(ctx: Context, parameters: dict) -> dict[str, mx.array]:
    """The value of each term and of each of its parts, as functions of the parameters."""
    tokens = read_passage(ctx)
    inputs, targets, found = tokens[:, :-1], tokens[:, 1:], {}
    drawn = noise(ctx.model, ctx.seed)
    with training_mode(ctx.model, False):
        out = with_parameters(ctx.model, parameters, lambda: ctx.model.forward(inputs, **drawn))
    for term in parse_terms(ctx.recipe.loss):
        value, parts = term.function(out.logits, targets, out.trace)
        found |= {term.name: value, **{f"{term.name}.{part}": number for part, number in parts.items()}}
    return found
