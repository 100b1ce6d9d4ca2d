"""Is the state alive? It moves, it lasts, it has a size, and it uses the room it has.

A state that forgets everything within a token passes every one of the old measures, and so does one that is
fed random numbers. So the measures are free of size, and D2 asks for a half-life beside the movement.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import read_passage
from kssm_mlx.checks.core.probes import (
    probe_length,
    short_context,
    swap_token,
    to_numpy,
    vocabulary_size,
)
from kssm_mlx.checks.core.registry import Check, Context, check, verdict
from kssm_mlx.checks.core.state_recording import record_states, refuse_stateless, view_states
from kssm_mlx.checks.core.thresholds import RANK as VERDICTS
from kssm_mlx.checks.core.thresholds import Band, judge_by_band, root_mean_square
from kssm_mlx.data.batches import random_batch
from kssm_mlx.metrics import state
from kssm_mlx.models.base import training_mode
from kssm_mlx.training.losses import split_rows

ROWS, TOKENS, LASTS = 4, 32, 8
FROZEN, HALF_LIFE = 0.9999, 1.0
ENTROPY = Band(low=0.1, warn_low=0.2, warn_high=0.98)
RANKS, DEAD = Band(low=1.5, warn_low=2.5), Band(high=0.9, warn_high=0.5)
SIZE, GROWTH = Band(1e-5, 1e4, 1e-4, 1e3), Band(high=10.0, warn_high=4.0)
UPDATE = Band(low=1e-4, warn_low=1e-3)
DOUBLINGS = 3


@check(
    "D2",
    level="S",
    title="the state moves and lasts",
    source="docs/background/hybrids.md#state-over-time",
    needs_training=True,
)
def state_moves(ctx: Context) -> Check:
    """4 rows of 32 held-out tokens, one at a time. Cosine: of every state with the one a token ago, the mean
    over tokens and rows, by memory. Half-life: the same rows with another first token; what is left of the
    difference per token is (|d_9| / |d_1|)^(1/8), and the half-life is ln 2 / -ln of that. The five largest
    singular values over all of them are reported.

    Threshold: cosine <= 0.9999 (warns above 0.999) in every memory: beyond it is frozen. A half-life of 1
    token in at least one memory: what forgets more than half of everything at every token looks alive and
    remembers nothing. Trained small models: cosine 0.4 to 0.996, half-lives from 1.3 tokens.
    Caught: the state of GroundThink's test, random keys and values at retention 0.25: cosine 0.58 and five
    values with 95 %, "healthy" by every published rule.
    Sabotage: a state that is never written; one with a retention of 0.25.
    """
    base, changed = _record_twice(ctx)
    cosine = {name: state.consecutive_cosine(s) for name, s in base.items()}
    lasting = {name: _half_life(base[name], changed[name]) for name in base}
    band = Band(high=FROZEN, warn_high=0.999)
    stillest, longest = band.worst(cosine), max(lasting, key=lambda n: np.nan_to_num(lasting[n], nan=-1.0))
    # One memory is enough: what is meant to forget at once, such as a convolution's inputs, may.
    lasts = lasting[longest] >= HALF_LIFE
    return verdict(
        "D2",
        band.judge(cosine[stillest]) if lasts else "fail",
        f"cosine {cosine[stillest]:.4f} ({stillest}), half-life {lasting[longest]:.3g} tokens ({longest})",
        f"cosine {band}, half-life >= {HALF_LIFE:g} token",
        "the state is not written: look at its gate and its input"
        if band.judge(cosine[stillest]) != "pass"
        else "the state forgets everything at once: look at its decay, see D8",
        cosine=cosine,
        half_life=lasting,
        top5={name: state.top_share(state.spectrum(s)) for name, s in base.items()},
    )


def _record_memories(ctx: Context) -> dict[str, np.ndarray]:
    """Every memory on held-out text. Raises: NotMeasurable without data: random tokens say nothing."""
    ctx.need("model", "data")
    return record_states(ctx.model, np.array(read_passage(ctx, ROWS))[:, :TOKENS])


def _record_twice(ctx: Context) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The memories on held-out text, and on the same text with another first token."""
    ctx.need("model", "data")
    # Held-out text: on random tokens a trained state moves as it never does in use.
    base = np.array(read_passage(ctx, ROWS))[:, :TOKENS]
    other = base.copy()
    other[:, 0] = swap_token(base[:, 0], vocabulary_size(ctx.model))
    both = record_states(ctx.model, np.concatenate([base, other]))
    return {n: s[:ROWS] for n, s in both.items()}, {n: s[ROWS:] for n, s in both.items()}


def _half_life(base: np.ndarray, changed: np.ndarray) -> float:
    gaps = np.linalg.norm((base - changed).astype(np.float64), axis=-1).mean(axis=0)
    return state.half_life(state.retention(gaps[: LASTS + 1]))


@check(
    "D5",
    level="S",
    title="the state keeps its size",
    source="docs/background/hybrids.md#state-norm",
    needs_training=True,
)
def state_keeps_its_size(ctx: Context) -> Check:
    """The root mean square of every memory (the median over 4 rows of held-out text) after one context, and
    after 2, 4 and 8 of them, the state handed on without a reset; growth is the largest over the first.

    Threshold: RMS within 1e-5 and 1e4 (warns outside 1e-4 and 1e3): a linear state has no natural size, and
    healthy ones lie between 1e-3 and 4e2, but half precision ends at 65,504. Growth <= 10 (warns above 4): a
    sum that forgets nothing grows by 3 or, where its writes agree, 8; one multiplied by 1.02 per token by far
    more.
    Caught: chunks whose states grew 725-fold, logged as PASS.
    Sabotage: a state multiplied by 1.05 at every token; one written at 1e-8; NaN.
    """
    ctx.need("model", "data", "recipe")
    sizes = _sizes(ctx)
    first = {name: found[0] for name, found in sizes.items()}
    growth = {name: max(found) / found[0] if found[0] > 0 else math.nan for name, found in sizes.items()}
    judged = [
        judge_by_band("D5", growth, GROWTH, "the recurrence is unstable: a factor above 1, or no decay")
    ]
    judged += [judge_by_band("D5", first, SIZE, "the state is not written, or overflows: look at its input")]
    # One verdict for two bands: the worse, with its own advice.
    worse = max(judged, key=lambda c: VERDICTS.index(c.verdict))
    smallest, largest = min(first.values()), max(first.values())
    return verdict(
        "D5",
        worse.verdict,
        f"RMS {smallest:.2g} to {largest:.2g}, growth {growth[GROWTH.worst(growth)]:.3g}",
        f"RMS {SIZE}, growth {GROWTH}",
        worse.fix,
        rms=first,
        growth=growth,
    )


def _sizes(ctx: Context) -> dict[str, list[float]]:
    """The RMS of every memory after 1, 2, 4, 8 contexts."""
    refuse_stateless(ctx.model)
    length, cache, sizes = short_context(ctx.recipe, probe_length(ctx)), None, {}
    with training_mode(ctx.model, False):
        for i in range(2**DOUBLINGS):
            rows = random_batch(ctx.data.validation, ctx.seed, i, ROWS, length).tokens
            cache = ctx.model.forward(split_rows(mx.array(rows))[0], cache).cache
            if (i + 1) & i == 0:  # a power of two
                for name, view in view_states(ctx.model, cache).items():
                    found = [root_mean_square(row) for row in to_numpy(view)]
                    sizes.setdefault(name, []).append(float(np.median(found)))
    return sizes


@check(
    "D6",
    level="S",
    title="no entry holds the state",
    source="docs/background/hybrids.md#state-entropy",
    needs_training=True,
)
def energy_is_spread(ctx: Context) -> Check:
    """-Σ p ln p / ln n of p = s² / Σ s², the share of each of the n entries of a memory in its energy; the
    mean over 32 tokens of 4 rows of held-out text.

    Threshold: >= 0.1 (warns below 0.2 and above 0.98): at 0.1 of ln n, n^0.1 entries hold everything; above
    0.98 all are equally large and only signs are left. Gaussian entries have 0.8 to 0.9, trained small models
    0.45 to 0.9. The published softmax is uniform for every small state, and was never divided by ln n.
    Caught: a state entropy of 6.09 logged as PASS, without the ln n it has to be held against.
    Sabotage: a state in which one entry grows.
    """
    found = {name: state.energy_entropy(s) for name, s in _record_memories(ctx).items()}
    return judge_by_band(
        "D6", found, ENTROPY, "one entry dwarfs the others: look at its input, its decay or a norm"
    )


@check(
    "D9",
    level="S",
    title="the state is updated",
    source="docs/background/hybrids.md#updates",
    needs_training=True,
)
def state_is_updated(ctx: Context) -> Check:
    """‖s_32 - s_8‖ / ‖s_8‖ of every memory, the mean over 4 rows of held-out text.

    Threshold: >= 1e-4 (warns below 1e-3): a state that stands still over 24 tokens holds nothing of them.
    Caught: an update of 1e-6 per token, a kernel that did nothing.
    Sabotage: a state that is written at the first token only.
    """
    moved = {}
    for name, s in _record_memories(ctx).items():
        # From the eighth token on: every state moves away from where it was empty.
        ends = s[:, [min(8, s.shape[1]) - 1, -1]]
        moved[name] = float(state.updates(ends).mean())
    return judge_by_band(
        "D9", moved, UPDATE, "the memory does not change: look at its write gate and its kernel"
    )


@check(
    "D10",
    level="S",
    title="the state uses its room",
    source="docs/background/hybrids.md#use-of-the-state",
    needs_training=True,
)
def state_uses_its_room(ctx: Context) -> Check:
    """Of the states after each of 32 tokens of 4 rows, less their mean: effective rank exp(H(σ / Σσ)) of the
    singular values; and the share of entries whose variance is below 1e-6 of the mean square.

    Threshold: rank >= 1.5 (warns below 2.5): with one direction a memory is one number. Dead <= 90 % (warns
    above 50 %). Trained small models move in 4 to 70 directions; the share of what is possible is reported.
    Caught: a population that all phases follow.
    Sabotage: a state whose entries are copies of one; one of which 95 % never change.
    """
    states = _record_memories(ctx)
    rank = {name: state.effective_rank(state.spectrum(s)) for name, s in states.items()}
    dead = {name: state.dead_share(s) for name, s in states.items()}
    lowest, deadest = RANKS.worst(rank), DEAD.worst(dead)
    words = (RANKS.judge(rank[lowest]), DEAD.judge(dead[deadest]))
    return verdict(
        "D10",
        max(words, key=VERDICTS.index),
        f"rank {rank[lowest]:.1f} ({lowest}), {dead[deadest]:.0%} dead ({deadest})",
        f"rank {RANKS}, dead {DEAD}",
        "most of the state is spare: the inputs of its entries agree, or their gates are shut",
        rank=rank,
        share={name: rank[name] / min(s.shape[-1], ROWS * TOKENS - 1) for name, s in states.items()},
        dead=dead,
    )
