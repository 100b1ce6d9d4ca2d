"""What checks of interventions share: arms that read the same text under the same noise, and how far apart
they are.

An arm is one way to run a model. Two arms differ in one thing only: in what is clamped, or in the seed of
the noise, or in whether a graft is in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.probes import probe_length, random_tokens, short_context, to_numpy
from kssm_mlx.checks.core.registry import Context, NotMeasurable
from kssm_mlx.data.batches import random_batch
from kssm_mlx.models.base import Intervention, training_mode
from kssm_mlx.training.losses import split_rows

MOST = 64  # tokens of a row: enough for a state to settle, few enough for seconds on a large model


class Arm(NamedTuple):
    """One run in evaluation mode. Shapes: logits [B, T, V]; trace as the model names it, in numpy."""

    logits: np.ndarray
    trace: dict[str, np.ndarray]


def read_passage(ctx: Context, rows: int = 8, stream: int = 0) -> mx.array:
    """Rows of held-out text, of 64 tokens or as long as a task's; random ids where there is no data.

    Raises: NotMeasurable where what was learned is asked for, which random ids do not tell.
    """
    if ctx.data is None:
        if ctx.text_only:
            raise NotMeasurable("needs text, and random ids are none; --untrained measures it all the same")
        ctx.caveats.append("on random ids")
        return mx.array(random_tokens(ctx, rows, min(probe_length(ctx), MOST), stream))
    length = short_context(ctx.recipe, MOST)
    batch = random_batch(ctx.data.validation, ctx.seed, stream, rows, length)
    return split_rows(mx.array(batch.tokens))[0]


def run_arm(model: Any, tokens: mx.array, seed: int = 0, treatment: Intervention | None = None) -> Arm:
    """The model on `tokens`; the same seed gives a stochastic model the same noise."""
    out = _forward(model, tokens, seed, treatment, "forward")
    trace = {name: to_numpy(value) for name, value in out.trace.items() if isinstance(value, mx.array)}
    return Arm(to_numpy(out.logits), trace)


def hidden_of(
    model: Any, tokens: mx.array, seed: int = 0, treatment: Intervention | None = None
) -> np.ndarray:
    """What the head reads, [B, T, D]. Raises: NotMeasurable for a model that does not give it."""
    if not hasattr(model, "hidden"):
        raise NotMeasurable("the model has no hidden(): a placebo after its final norm cannot be made")
    return to_numpy(_forward(model, tokens, seed, treatment, "hidden")[0])


def _forward(model: Any, tokens: mx.array, seed: int, treatment: Intervention | None, method: str):
    mx.random.seed(seed)
    with training_mode(model, False):
        return getattr(model, method)(tokens, None, treatment, **noise(model, seed))


def noise(model: Any, seed: int) -> dict[str, mx.array]:
    """What `forward` is told to draw from, where the model draws: the same for the same seed."""
    return {"key": mx.random.key(seed)} if getattr(model, "stochastic", False) else {}


def mean_kl(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean KL(reference || other) over the tokens, in nats. Shapes: logits [B, T, V]."""
    p, q = log_softmax(reference), log_softmax(other)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def blocks_with(trace: dict[str, Any], quantity: str) -> dict[int, Any]:
    """Block -> what the trace calls `block03/quantity`."""
    ending = f"/{quantity}"
    blocks = (name.removesuffix(ending) for name in trace if name.endswith(ending))
    return {int(block.removeprefix("block")): trace[block + ending] for block in blocks}


def mean_R(trace: dict[str, Any]) -> dict[int, float]:
    """Block -> R, the mean over rows, tokens and groups. Raises: NotMeasurable for a trace without R."""
    R = blocks_with(trace, "R")
    if not R:
        raise NotMeasurable('the trace has no "block00/R"')
    return {block: float(to_numpy(mx.array(r)).mean(dtype=np.float64)) for block, r in R.items()}
