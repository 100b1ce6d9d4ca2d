"""What is kept, how long, and is it what matters? The tests without which a lively state proves nothing."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.conditions import log_softmax
from kssm_mlx.checks.core.probes import logits_of
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.checks.core.state_recording import record_states
from kssm_mlx.data.batches import random_batch
from kssm_mlx.data.tasks import Passkey
from kssm_mlx.metrics import state
from kssm_mlx.training.losses import split_rows

ROWS, SIGMA = 400, 5.0
KEPT, CHOSEN, ENOUGH = 0.01, 0.8, 0.5
SHOWN = 8  # rows whose states are recorded for W


@check(
    "D11",
    level="S",
    title="what was read persists",
    source="docs/background/hybrids.md#passkeys",
    needs_training=True,
    false_alarm=1e-6,
)
def reading_persists(ctx: Context) -> Check:
    """On rows of the task "passkey", up to 400 of validation: the share of the key's digits that come first
    in the answer, by the distance between key and question; τ is the distance at which accuracy above chance
    is half of that at the shortest one. What text is worth further back is asked by C18.

    Threshold: accuracy five standard errors above chance, 1/10, at every distance (warns where only some
    are).
    Caught: an informal probe of recall after 0 to 70 dialogues that was never scored.
    Sabotage: a model that forgets its state at every token; a key of other digits than the answer.
    """
    chance, (hits, distances) = _task(ctx).chance, _answers(ctx)
    accuracy = _by_distance(hits, distances)
    error = {d: math.sqrt(chance * (1 - chance) / hits[distances == d].size) for d in accuracy}
    # Above what guesses reach by luck, at each distance: the mean over all would hide a memory that ends.
    kept = [d for d in accuracy if accuracy[d] > chance + SIGMA * error[d]]
    said = ", ".join(f"{d}: {a:.0%}" for d, a in accuracy.items())
    return verdict(
        "D11",
        "pass" if len(kept) == len(accuracy) else "warn" if kept else "fail",
        f"accuracy by distance {said}",
        f"> {chance:.0%} + {SIGMA:g} standard errors at every distance",
        "the key is forgotten: see the half-lives of D8, train longer, or begin with shorter distances",
        accuracy=accuracy,
        tau=state.reach(accuracy, chance),
        chance=chance,
    )


def _task(ctx: Context) -> Passkey:
    """Raises: NotMeasurable for other data, of which nobody knows what matters and where it stands."""
    ctx.need("model", "data")
    if not isinstance(ctx.data.task, Passkey):
        raise NotMeasurable("asks rows of the task passkey, of which is known what matters and where it is")
    return ctx.data.task


def _by_distance(hits: np.ndarray, distances: np.ndarray) -> dict[int, float]:
    return {int(d): float(hits[distances == d].mean()) for d in np.unique(distances)}


def _answers(ctx: Context) -> tuple[np.ndarray, np.ndarray]:
    """Whether each digit of the answer comes first, and its distance. Shapes: [rows, digits], [rows]."""
    ids, logits, places = _ask_rows(ctx)
    hits = np.take_along_axis(logits, places[..., None] - 1, axis=1).argmax(axis=-1)
    answers = np.take_along_axis(ids, places, axis=1)
    return hits == answers, _distances(ids, ctx.data.task.digits)


def _ask_rows(ctx: Context, change=lambda ids: ids) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, logits, places of the answer) of validation rows, of which the model reads a change."""
    task = ctx.data.task
    rows = min(ROWS, ctx.data.validation.starts.size)
    tokens = random_batch(ctx.data.validation, ctx.seed, 0, rows, task.length).tokens
    # Tokens that are not scored are stored as -2 - id.
    ids = np.where(tokens < 0, -2 - tokens, tokens)
    places = np.tile(np.arange(task.length + 1 - task.digits, task.length + 1), (rows, 1))
    read = change(ids.copy())[:, :-1]
    return ids, np.concatenate([logits_of(ctx.model, part) for part in np.array_split(read, 8)]), places


def _distances(ids: np.ndarray, digits: int) -> np.ndarray:
    return np.argmax(ids == 11, axis=1) - np.argmax(ids == 10, axis=1) - 1 - digits


@check(
    "D12",
    level="G",
    title="what does not matter is let go",
    source="docs/background/hybrids.md#forgetting",
    needs_training=True,
)
def noise_is_forgotten(ctx: Context) -> Check:
    """On up to 400 rows of the task "passkey", mean KL(as it is || changed) of the answer's logits, where the
    change is of every digit of the key (important), or of as many tokens of filler behind it or, where there
    are not, in front of it (unimportant). η = (important - unimportant) / important.

    Threshold: important >= 0.01 nats, or nothing is kept and nothing chosen; η >= 0.8. Asked by influence,
    not by recall: the task never asks for the filler, so no answer of the model could show that it is kept.
    Caught: nothing by name; GroundThink asks for recall(important) - recall(unimportant) and never built it.
    Sabotage: a model that forgets at every token; one whose answer hangs on the filler.
    """
    kept, noise = _influences(ctx)
    eta = state.selectivity(kept, noise)
    return verdict(
        "D12",
        kept >= KEPT and eta >= CHOSEN,
        f"η {eta:.2f}: the key moves the answer by {kept:.2g} nats, the filler by {noise:.2g}",
        f"η >= {CHOSEN:g}, key >= {KEPT:g} nats",
        "the answer hangs on the filler: the task is not learned yet, or the state is too small to choose"
        if kept >= KEPT
        else "the key does not reach the answer, see D11",
        eta=eta,
        important=kept,
        unimportant=noise,
    )


def _influences(ctx: Context) -> tuple[float, float]:
    """(nats by which the key moves the answer, by which the filler does)."""
    task = _task(ctx)

    def digits(ids: np.ndarray) -> np.ndarray:
        return _replace_ids(ids, np.argmax(ids == 10, axis=1) + 1, task.digits, 0, 10)

    def filler(ids: np.ndarray) -> np.ndarray:
        key, behind = np.argmax(ids == 10, axis=1), _distances(ids, task.digits) >= task.digits
        # Behind the key where there is room: what is nearer to the answer is the harder to forget.
        start = np.where(behind, key + 1 + task.digits, np.maximum(key - task.digits, 0))
        return _replace_ids(ids, start, task.digits, 12, task.vocab)

    (_, plain, places), *changed = (_ask_rows(ctx, change) for change in (lambda ids: ids, digits, filler))
    reference = log_softmax(np.take_along_axis(plain, places[..., None] - 1, axis=1))
    other = (log_softmax(np.take_along_axis(x, places[..., None] - 1, axis=1)) for _, x, _ in changed)
    one, two = (float(np.mean(np.sum(np.exp(reference) * (reference - q), axis=-1))) for q in other)
    return one, two


def _replace_ids(ids: np.ndarray, start: np.ndarray, count: int, lowest: int, kinds: int) -> np.ndarray:
    """Other ids of the same kind at `count` places from `start`; what is of another kind stays."""
    at = start[:, None] + np.arange(count)
    here = np.take_along_axis(ids, at, axis=1)
    moved = lowest + (here - lowest + 1 + np.arange(count) % max(1, kinds - 1)) % kinds
    same_kind = (here >= lowest) & (here < lowest + kinds)
    np.put_along_axis(ids, at, np.where(same_kind, moved, here), axis=1)
    return ids


@check(
    "D20",
    level="G",
    title="W, τ and η of the worldview",
    source="docs/background/hybrids.md#worldview",
    needs_training=True,
)
def measure_worldview(ctx: Context) -> Check:
    """GroundThink's three words as numbers, on rows of the task "passkey". W: effective rank of a memory
    times the share of tokens whose relative update exceeds twice the median one, the largest over memories, 8
    rows. τ: the distance at which accuracy above chance is half of what it is at the shortest distance (D11).
    η: as in D12.

    Threshold: τ beyond the shortest distance asked for, and η >= 0.5. W is reported and not judged: it is 0
    for healthy RWKV-4s, in which no token is written twice as much as the median one. Definitions and limits
    are proposals: GroundThink never defined them.
    Caught: claims of a "growing worldview" that named no number.
    Sabotage: a model that forgets at every token.
    """
    kept, noise = _influences(ctx)
    accuracy = _by_distance(*_answers(ctx))
    tau, eta = state.reach(accuracy, ctx.data.task.chance), state.selectivity(kept, noise)
    rows = mx.array(random_batch(ctx.data.validation, ctx.seed, 0, SHOWN, ctx.data.task.length).tokens)
    W = max(map(state.worldview, record_states(ctx.model, np.array(split_rows(rows)[0])).values()))
    return verdict(
        "D20",
        tau > min(accuracy) and eta >= ENOUGH,
        f"W {W:.2f}, τ {tau:.3g} tokens, η {eta:.2f}",
        f"τ > {min(accuracy)} tokens, η >= {ENOUGH:g}",
        "see D11 for τ and D12 for η",
        W=W,
        tau=tau,
        eta=eta,
        accuracy=accuracy,
    )
