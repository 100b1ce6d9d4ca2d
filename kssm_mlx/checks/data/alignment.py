"""Is the trainer asked the right question: the next token, and no token that is not there?"""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import log_softmax
from kssm_mlx.checks.core.probes import (
    logits_of,
    probe_length,
    random_tokens,
    swap_token,
    vocabulary_size,
)
from kssm_mlx.checks.core.registry import Check, Context, check, verdict
from kssm_mlx.data.batches import Batch, evaluation_windows, random_batch, track_batch
from kssm_mlx.data.tokens import TokenSplit
from kssm_mlx.models.base import LanguageModel, Output, number, training_mode
from kssm_mlx.training.evaluation import make_evaluator
from kssm_mlx.training.losses import cross_entropy, split_rows
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step

PERIOD, SHIFTS = 7, (-1, 0, 1, 2)
SURE = 20.0  # the logit of an oracle: right it costs 1e-8 nats, wrong it costs 20
RUN, BATCHES = 16, 8  # equal tokens in a row that count as padding; batches that are looked at


class Oracle(LanguageModel):
    """Says, and is sure, that the cycle 0 1 .. 6 0 1 .. goes on `shift` places further."""

    model_type = "oracle"
    no_decay, clamp_sites = ("sure",), ()

    def __init__(self, shift: int):
        super().__init__()
        self.args, self.sure, self._shift = SimpleNamespace(vocab_size=PERIOD), mx.array(SURE), shift

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        following = (tokens + self._shift) % PERIOD
        return Output(self.sure * (following[..., None] == mx.arange(PERIOD)), [], {})


@check(
    "C30",
    level="P",
    title="the target is the next token",
    source="docs/background/phase-grafts.md#logit-modulation",
)
def target_alignment(ctx: Context) -> Check:
    """Four oracles read a cycle of 7 ids; oracle s is sure that what follows is s places further on, for s =
    -1, 0, 1, 2. Each is scored by the recipe's own trainer (its batches, its step, the loss it would log) and
    by the evaluation, on token files of the cycle.

    Threshold: the loss is least at s = 1, and there below 0.01 nats: the oracle of the next token is never
    wrong, any other always. No model is trained, so nothing else can be the reason.
    Caught: the logit modulation, which learned the second token of a text from its last position.
    Sabotage: targets that are the inputs; targets two places on; an evaluation that scores the input.
    """
    ctx.need("recipe")
    context, rows = min(ctx.recipe.train.context, 64), min(ctx.recipe.train.batch_size, 4)
    train = Train(context=context, batch_size=rows, hand_off=ctx.recipe.train.hand_off)
    losses = {"training": {}, "evaluation": {}}
    for shift in SHIFTS:
        losses["training"][shift] = _trained_loss(Oracle(shift), train)
        losses["evaluation"][shift] = _evaluated_loss(Oracle(shift), train)
    least = {where: min(at, key=at.__getitem__) for where, at in losses.items()}
    wrong = [where for where in losses if least[where] != 1 or not losses[where][1] < 0.01]
    where = (wrong or ["training"])[0]
    return verdict(
        "C30",
        not wrong,
        f"{where}: least loss at shift {least[where]:+d}, {losses[where][1]:.2g} nats at +1",
        "least at shift +1, < 0.01 nats there",
        f"the {where} scores another token than the next: inputs are tokens[:, :-1], targets tokens[:, 1:]",
        losses={w: {f"{s:+d}": loss for s, loss in at.items()} for w, at in losses.items()},
    )


def _cycle(train: Train) -> TokenSplit:
    length = (2 * train.batch_size + 1) * train.context + 1
    return TokenSplit("cycle", np.arange(length) % PERIOD, np.zeros(1, np.int64))


def _trained_loss(oracle: Oracle, train: Train) -> float:
    """What the first step of a run of `train` logs."""
    split = _cycle(train)
    if train.hand_off:
        batch = track_batch(split, 0, train.batch_size, train.context)
    else:
        batch = random_batch(split, train.seed, 0, train.batch_size, train.context)
    tokens, resets = mx.array(batch.tokens), None if batch.resets is None else mx.array(batch.resets)
    step = make_step(oracle, train, compile=False)
    return number(step(initial_state(oracle, train), tokens, resets)[1]["loss"])


def _evaluated_loss(oracle: Oracle, train: Train) -> float:
    windows = evaluation_windows(_cycle(train), 2 * train.context, train.context, train.batch_size)
    evaluate = make_evaluator(oracle, compile=False)
    return evaluate(oracle.parameters(), windows, lambda targets: 1.0)["nats_per_token"]


@check(
    "C31",
    level="P",
    title="padding teaches nothing",
    source="docs/background/phase-grafts.md#padding",
    passes=3,
)
def padding_teaches_nothing(ctx: Context) -> Check:
    """Share: of the targets of 8 training batches, those that are padding (-1) or lie in 16 or more equal
    tokens in a row (of a shorter row, half of it or more), which is padding that nobody marked. Mask: the
    model's mean loss over 4 rows of random tokens, three of them cut short by padding, once -1 and once ids
    that are not scored, against the mean of what is left, by hand.

    Threshold: share <= 20 %: the rest is work for nothing, and unmarked it is what the model learns first.
    Mask: both within 1e-6 of it, relative, float32 rounding: what is not scored changes neither the sum nor
    the number it is divided by.
    Caught: the modular task scored on its padding; Phase-Mamba in MLX (512 tokens filled up with id 0) and
    Phase-RWKV (256 with the end of text, about 87 %): the loss was mostly that of predicting padding.
    Sabotage: a corpus filled up with zeros; a loss that counts padding.
    """
    ctx.need("model", "recipe", "data")
    share = float(np.mean([_share_of_padding(targets) for targets in _targets(ctx)]))
    change = _mask_change(ctx)
    problems = [f"{share:.0%} of the targets are padding"] if not share <= 0.2 else []
    problems += [f"padding changes the loss by {change:.1e}"] if not change <= 1e-6 else []
    return verdict(
        "C31",
        not problems,
        "; ".join(problems) or f"{share:.1%} of the targets are padding, it changes the loss by {change:.0e}",
        "<= 20 % padding, loss within 1e-6 whatever it holds",
        "pack documents one after the other, and give a target that is padding a negative id",
        share=share,
        change=change,
    )


def _targets(ctx: Context) -> list[np.ndarray]:
    """The targets [B, T] of the first training batches, negative where they are not scored."""
    train, split = ctx.recipe.train, ctx.data.train
    batches: list[Batch] = [
        track_batch(split, i, train.batch_size, train.context)
        if train.hand_off
        else random_batch(split, train.seed, i, train.batch_size, train.context)
        for i in range(BATCHES)
    ]
    return [np.array(split_rows(mx.array(batch.tokens))[1]) for batch in batches]


def _share_of_padding(targets: np.ndarray) -> float:
    """The share of targets that are padding, marked (-1) or not: equal ids, at least 16 or half of a row."""
    marked, scored = targets == -1, targets >= 0
    edges = np.diff(targets, axis=1, prepend=-(1 << 30)) != 0
    runs = np.cumsum(edges.reshape(-1)) - 1
    long = np.bincount(runs)[runs].reshape(targets.shape) >= min(RUN, targets.shape[1] / 2)
    counted = marked | scored
    return float((marked | (scored & long)).sum() / max(1, counted.sum()))


def _mask_change(ctx: Context) -> float:
    """How far padding moves the mean loss, relative to it."""
    T = min(probe_length(ctx), 32)
    tokens, lengths = random_tokens(ctx, 4, T + 1, stream=31), np.array([T + 1, T // 2, T // 3, 3])
    padded = np.arange(T + 1) >= lengths[:, None]
    expected = _by_hand(logits_of(ctx.model, tokens[:, :-1]), tokens[:, 1:], ~padded[:, 1:])
    fillings = np.full_like(tokens, -1), -2 - swap_token(tokens, vocabulary_size(ctx.model), stream=31)
    got = [_by_the_trainer(ctx, np.where(padded, filling, tokens)) for filling in fillings]
    return float(np.max(np.abs(np.array(got) - expected)) / expected)


def _by_the_trainer(ctx: Context, rows: np.ndarray) -> float:
    """Mean nats of the targets as the trainer scores and counts them."""
    inputs, targets = split_rows(mx.array(rows))
    with training_mode(ctx.model, False):
        nats, count = cross_entropy(ctx.model.forward(inputs).logits, targets)
    return number(nats) / number(count)


def _by_hand(logits: np.ndarray, targets: np.ndarray, real: np.ndarray) -> float:
    chosen = np.take_along_axis(log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return -float(chosen[real].mean())
