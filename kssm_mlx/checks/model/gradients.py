"""Does the loss reach every parameter, and did training move them?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from kssm_mlx.checks.core.probes import (
    cross_entropy,
    probe_length,
    random_tokens,
    to_numpy,
    vocabulary_size,
)
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, require_value, verdict
from kssm_mlx.models.base import LanguageModel, component_of, flatten, number, training_mode, with_parameters
from kssm_mlx.runs.layout import CHECKPOINTS
from kssm_mlx.training.loss_terms import Term, parse_terms
from kssm_mlx.training.optimizers.gradients import global_norm

BATCHES, ROWS, BLOCKS = 5, 4, 64
TERM = 1e-8


@check(
    "C7",
    level="P",
    title="the loss reaches every parameter",
    source="docs/background/steering.md#terms-without-a-gradient",
    passes=15,
)
def loss_reaches_parameters(ctx: Context) -> Check:
    """max |∂CE/∂w| over 5 small batches of random tokens, from cross-entropy alone, in training mode, for
    each trainable tensor and each of up to 64 consecutive blocks of its rows (first axis; of an embedding or
    a head, the rows of the ids that occurred; of a table by position, the rows of the 61 tokens). Between the
    batches a throw-away copy moves by 1e-3 against the sign of the gradient, so that projections that start
    at zero do not hide what lies behind them. Of each term of the recipe's [loss], the norm of its gradient
    over all that is trained.

    Threshold: > 0: what nothing reads gets exactly 0. Healthy rows can be small: measured 1e-12 for the
    fastest channels of a fresh RWKV-4 and, by rounding alone, for the bias of keys, which softmax cancels. A
    term > 1e-8, or it is a constant that nothing can lower; one whose value is 0 is not at work and warns.
    Caught: the coupling of v1, the aggregator of v2, rows i and j of v3, every U, tone and EOS term that
    was a Python float, and all of Phase-RWKV.
    Sabotage: a parameter that nothing reads; two of ten rows of a projection that nothing reads; a term that
    is a number.
    """
    ctx.need("model")
    rows = _gradients_by_block(ctx)
    dead = [_name(name, blocks) for name, blocks in rows.items() if not all(b > 0 for b in blocks)]
    weakest = min(rows, key=lambda name: np.nan_to_num(min(rows[name]), nan=-1.0))
    terms = _term_gradients(ctx)
    flat = [name for name, (_, norm) in terms.items() if not norm > TERM]
    constant = [f"term {name}" for name in flat if terms[name][0] != 0]
    return verdict(
        "C7",
        "fail" if dead or constant else "warn" if flat else "pass",
        f"no gradient in {', '.join([*constant, *dead][:4])}{' ...' if len(constant + dead) > 4 else ''}"
        if dead or constant
        else f"weakest of {len(rows)} tensors {weakest}: {min(rows[weakest]):.1e}"
        + "".join(f"; term {name} is 0" for name in flat),
        "gradient in every tensor and row block" + (f"; of each term > {TERM:g}" if terms else ""),
        "remove what nothing reads, or connect it: a Python float or a saturated clamp passes no gradient",
        dead=dead,
        weakest=weakest,
        terms={name: {"value": value, "gradient": norm} for name, (value, norm) in terms.items()},
    )


def _gradients_by_block(ctx: Context) -> dict[str, list[float]]:
    """Tensor -> max |gradient| of each block of the rows that were asked for."""
    largest, seen = _largest_gradients(ctx)
    V = vocabulary_size(ctx.model)
    read = {name: g[seen] if g.shape[:1] == (V,) else _read(g, _length(ctx)) for name, g in largest.items()}
    return {name: _row_blocks(g) for name, g in read.items()}


def _read(g: np.ndarray, length: int) -> np.ndarray:
    """Without the rows past the `length` of a text, if it is these and no others that got nothing."""
    if not g.ndim or g.shape[0] <= length:
        return g
    alive = g.reshape(g.shape[0], -1).max(axis=1) != 0
    return g[:length] if alive[:length].all() and not alive[length:].any() else g


def _length(ctx: Context) -> int:
    """Tokens of a row: a prime, so that no part of a tensor ends there by chance."""
    return min(probe_length(ctx), 61)


def _term_gradients(ctx: Context) -> dict[str, tuple[float, float]]:
    """Term of the recipe's [loss] -> (its weighted value, the norm of its gradient) on one batch."""
    tokens = mx.array(random_tokens(ctx, ROWS, _length(ctx) + 1, stream=75))
    found = parse_terms(ctx.recipe.loss) if ctx.recipe is not None else ()
    return {term.name: _term_gradient(ctx.model, term, tokens) for term in found}


def _term_gradient(model: LanguageModel, term: Term, tokens: mx.array) -> tuple[float, float]:
    def weigh(parameters) -> mx.array:
        out = with_parameters(model, parameters, lambda: model.forward(tokens[:, :-1]))
        return term.weight * term.function(out.logits, tokens[:, 1:], out.trace)[0]

    with training_mode(model, True):
        # The weighted value: a weight of 0 makes a term that is not at work.
        value, gradient = mx.value_and_grad(weigh)(model.trainable_parameters())
    return number(value), number(global_norm(gradient))


def _largest_gradients(ctx: Context) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Per tensor the elementwise max |gradient| over the batches, and the ids that occurred as inputs."""
    model, length = ctx.model, _length(ctx)
    gradient = mx.grad(lambda p, batch: with_parameters(model, p, lambda: cross_entropy(model, batch)))
    parameters, largest, ids = model.trainable_parameters(), {}, []
    with training_mode(model, True):
        for i in range(BATCHES):
            tokens = random_tokens(ctx, ROWS, length + 1, stream=70 + i)
            gradients = flatten(gradient(parameters, mx.array(tokens)))
            moved = flatten(parameters)
            # By the sign, so that every tensor moves, however small its gradient.
            parameters = tree_unflatten([(n, moved[n] - 1e-3 * mx.sign(g)) for n, g in gradients.items()])
            mx.eval(parameters)
            for name, g in gradients.items():
                largest[name] = np.maximum(largest.get(name, 0.0), np.abs(to_numpy(g)))
            ids.append(tokens[:, :-1])
    return largest, np.unique(ids)


def _row_blocks(g: np.ndarray) -> list[float]:
    """max of each of up to 64 consecutive blocks of rows of |gradient|."""
    rows = g.reshape(g.shape[0], -1).max(axis=1) if g.ndim else g.reshape(1)
    return [float(block.max()) for block in np.array_split(rows, min(BLOCKS, len(rows)))]


def _name(tensor: str, blocks: list[float]) -> str:
    """`mixer.weight`, or `mixer.weight (rows 8-9 of 10 blocks)` where only a part is dead."""
    dead = [i for i, b in enumerate(blocks) if not b > 0]
    return tensor if len(dead) == len(blocks) else f"{tensor} (row block {dead[0]} of {len(blocks)})"


@check(
    "C8",
    level="S",
    title="training moved every weight",
    source="docs/background/phase-grafts.md#random-tensors-in-place-of-a-model",
)
def weights_moved(ctx: Context) -> Check:
    """For each trainable tensor ‖w - w₀‖ / ‖w₀‖ against the parameters before step 1, over what the recipe's
    [freeze] and its groups of learning rate 0 let move, once 20 steps are done; whether what is frozen is
    equal bit for bit; and whether the optimiser's saved state holds a non-zero tensor.

    Threshold: > 1e-6 in every tensor: one AdamW step at a learning rate of 1e-5 already moves more.
    Caught: Phase-RWKV Attempt 3: byte-identical weights at steps 300 to 500, an optimiser without state.
    Sabotage: a tensor that stays; an optimiser file of zeros; a frozen tensor that weight decay shrinks.
    """
    ctx.need("model", "initial")
    initial = require_value(ctx.initial, "initial")
    if ctx.history is not None and ctx.step < 20:
        raise NotMeasurable(f"{ctx.step} steps done, 20 needed")
    now = flatten(ctx.model.trainable_parameters())
    missing = sorted(set(now) ^ set(initial))
    changes = {n: _change(now[n], initial[n], ctx.masks.get(n)) for n in now if n in initial}
    moved = {n: change for n, (change, _) in changes.items() if change is not None}
    at_rest = _groups_at_rest(ctx)
    still = [n for n, change in moved.items() if not change > 1e-6 and not at_rest(n)] + missing
    loose = [n for n, (_, kept) in changes.items() if not kept]
    optimiser = _optimiser_moments(ctx.run_folder)
    least = min(moved, key=moved.__getitem__)
    problems = [f"{len(still)} of {len(now)} tensors did not move: {', '.join(still[:4])}"] if still else []
    problems += [f"frozen, and moved all the same: {', '.join(loose[:4])}"] if loose else []
    problems += ["optimiser state empty"] if optimiser == 0 else []
    return verdict(
        "C8",
        not problems,
        "; ".join(problems) or f"least moved {least}: {moved[least]:.1e}",
        "every tensor moves by > 1e-6, but for what is frozen"
        + ("" if optimiser is None else "; optimiser state not empty"),
        "the optimiser does not get these parameters, or gets stale copies of them",
        least=least,
        still=still,
        loose=loose,
        optimiser_tensors=optimiser,
    )


def _groups_at_rest(ctx: Context) -> Callable[[str], bool]:
    """Whether a tensor is in a group of [train.groups] with a learning rate of 0."""
    groups = ctx.recipe.train.groups if ctx.recipe else {}
    resting = {tag for tag, group in groups.items() if group.learning_rate == 0}
    return lambda name: component_of(ctx.model, name) in resting


def _change(now: mx.array, before: mx.array, mask: mx.array | None) -> tuple[float | None, bool]:
    """The relative change where the mask is True, None where it nowhere is; whether the rest is as it was."""
    # float64: 1e-6 of a weight is at the edge of what a float32 difference can show.
    a, b = to_numpy(now).astype(np.float64), to_numpy(before).astype(np.float64)
    free = np.broadcast_to(True if mask is None else np.array(mask), a.shape)
    kept = np.array_equal(a[~free], b[~free])
    change = np.linalg.norm(a[free] - b[free]) / (np.linalg.norm(b[free]) + 1e-12)
    return (float(change) if free.any() else None), kept


def _optimiser_moments(folder: Path | None) -> int | None:
    """How many tensors of the latest checkpoint's optimiser are not all zero; None where there is no
    checkpoint.
    """
    files = sorted(Path(folder).glob(f"{CHECKPOINTS}/step_*/optimizer.safetensors")) if folder else []
    if not files:
        return None
    # The file and not the state in memory: what a resumed run would begin with.
    moments = flatten(mx.load(str(files[-1])))
    return sum(bool(mx.any(t != 0)) for t in moments.values())
