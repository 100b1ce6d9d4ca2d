"""Does the order parameter matter to the prediction? do(R) through the model's own clamp, against the noise
floor and against a placebo.
"""

from __future__ import annotations

from itertools import product
from typing import cast

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import Arm, blocks_with, hidden_of, mean_kl, read_passage, run_arm
from kssm_mlx.checks.core.probes import to_numpy
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.checks.oscillators.noise_floor import measure_placebo, noise_floor
from kssm_mlx.models.base import Clamp, Intervention

LEVELS = (0.2, 0.5, 0.8)
MISS, NATS, FLOORS = 0.05, 1e-3, 3.0
HELD = {"R": 0.5, "psi": 1.0}  # for C21: what each site is held at; 0.1 elsewhere, which nothing equals


@check(
    "C20",
    level="G",
    title="R reaches the prediction",
    source="docs/background/k-ssm.md#forcing-r",
    needs_training=True,
    false_alarm=1e-3,
)
def coherence_matters(ctx: Context) -> Check:
    """Hold R of one block at 0.2, 0.5, 0.8 through the model's clamp on "R" ("forced_R" where that is all
    it has), on 8 rows of held-out text. Achieved: max |R in the trace - R*|. Treatment: mean KL(free ||
    held) of the logits, those after the final norm, over tokens, blocks and levels. Floor: KL between free
    runs that differ in the noise. Placebo: the same KL where what the head reads is moved by as much as the
    treatment moves it, token by token, in a random direction; every R stays as it is.

    Threshold: |R - R*| <= 0.05, or something else was held; KL >= 1e-3 nats, which a loss can show; >= 3
    floors; > the placebo: a clamp that does no more than a random push of its size disturbs the model, and
    does not show that it uses R. Small K-SSMs have 3 to 8 placebos after 60 steps, 0.9 to 1.1 with random
    weights.
    Caught: v2, which scaled the stream by R* / R just before a norm that takes the scale out; v3's script,
    which scaled features 0 to 2 where R is feature 64; the hook that did nothing in evaluation.
    Sabotage: K-SSM v2; a clamp on another quantity; a model with random weights; one that ignores clamps; one
    that is loud with noise.
    """
    ctx.need("model")
    site = next((s for s in ("R", "forced_R") if s in getattr(ctx.model, "clamp_sites", ())), None)
    if site is None:
        raise NotMeasurable('the model has no clamp site "R"')
    tokens = read_passage(ctx)
    free = run_arm(ctx.model, tokens, ctx.seed)
    blocks = blocks_with(free.trace, "R")
    if not blocks:
        raise NotMeasurable('the trace has no "block00/R": what the clamp achieved cannot be read')
    clamps = [Clamp(site, level, block=block) for block, level in product(blocks, LEVELS)]
    arms = np.array([_treat(ctx, tokens, free, clamp) for clamp in clamps])
    missed, nats, push = arms[:, 0].max(), *arms[:, 1:].mean(axis=0)
    floor = noise_floor(
        lambda seed: mean_kl(*(run_arm(ctx.model, tokens, s).logits for s in (seed, seed + 100))), ctx.seeds
    )
    reasons = {
        "R does not reach the logits: a norm takes it out, a bypass goes past it, or see C21": not nats
        >= NATS,
        "the effect drowns in the model's own noise": not nats >= FLOORS * floor.mean,
        "the clamp does not hold R: it acts on something else, or too late": not missed <= MISS,
        "the logits move no more than under any push of that size: the model does not use R": not nats > push,
    }
    return verdict(
        "C20",
        not any(reasons.values()),
        f"KL {nats:.1e} nats, placebo {push:.1e}, noise {floor.mean:.1e}; R missed by {missed:.1e}",
        f"KL >= {NATS:g}, >= {FLOORS:g} x noise, > placebo; R within {MISS}",
        next((why for why, failed in reasons.items() if failed), ""),
        nats=nats,
        placebo=push,
        floor=floor.mean,
        missed=missed,
        arms={f"block {c.block}, R = {c.value}": arm.tolist() for c, arm in zip(clamps, arms)},
    )


def _treat(ctx: Context, tokens: mx.array, free: Arm, clamp: Clamp) -> tuple[float, float, float]:
    """(|R - R*|, KL of the treatment, KL of its placebo)."""
    held = run_arm(ctx.model, tokens, ctx.seed, Intervention((clamp,)))
    block = cast(int, clamp.block)  # each clamp here is of one block
    missed = np.max(np.abs(blocks_with(held.trace, "R")[block] - clamp.value))
    before = hidden_of(ctx.model, tokens, ctx.seed)
    moved = hidden_of(ctx.model, tokens, ctx.seed, Intervention((clamp,))) - before
    pushed = (before + measure_placebo(moved, ctx.seed)).astype(np.float32)
    disturbed = to_numpy(ctx.model.project(mx.array(pushed)))
    return float(missed), mean_kl(free.logits, held.logits), mean_kl(free.logits, disturbed)


@check(
    "C21",
    level="G",
    title="treatment and control are two arms",
    source="docs/background/phase-grafts.md#the-hook-that-does-nothing-in-evaluation",
)
def same_arm(ctx: Context) -> Check:
    """For every intervention that a claim is about, or where none is given for every clamp site of the model,
    held in all blocks (R at 0.5, psi at 1, anything else at 0.1): logits with it and without, same text, same
    seed.

    Threshold: not bitwise equal: an intervention that reaches the arithmetic changes a last digit
    somewhere.
    Caught: the baseline and the intervention of Phase-Mamba, p = 0.44 to 0.87 between two identical arms.
    Sabotage: a model that works with its clamps in training mode only; a clamp on tokens that never come.
    """
    ctx.need("model")
    sites = getattr(ctx.model, "clamp_sites", ())
    held = {site: Intervention((Clamp(site, HELD.get(site, 0.1)),)) for site in sites}
    treatments = ctx.interventions or held
    if not treatments:
        raise NotMeasurable("the model has no clamp sites, so no treatment can be given")
    tokens = read_passage(ctx, rows=4)
    control = run_arm(ctx.model, tokens, ctx.seed).logits
    change = {
        name: float(np.max(np.abs(run_arm(ctx.model, tokens, ctx.seed, treatment).logits - control)))
        for name, treatment in treatments.items()
    }
    idle = [name for name, moved in change.items() if not moved > 0]
    weakest = min(change, key=lambda name: np.nan_to_num(change[name], nan=-1.0))
    return verdict(
        "C21",
        not idle,
        f"treatment not applied: the logits are equal with and without {', '.join(idle)}"
        if idle
        else f"{len(change)} treatments act, least {weakest}: logits move by {change[weakest]:.1e}",
        "logits of treatment and control differ in at least one bit",
        "no comparison of these arms means anything: look for a branch on `training`, or an argument dropped",
        change=change,
    )
