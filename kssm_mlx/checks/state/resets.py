"""Does a reset forget all of the document before it?"""

from __future__ import annotations

import inspect

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.probes import (
    dtype_tolerance,
    logit_deviation,
    logit_spread,
    perturb_zero_init,
    probe_length,
    random_tokens,
    to_numpy,
)
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check
from kssm_mlx.checks.core.thresholds import Band, judge_by_band
from kssm_mlx.models.base import training_mode

ROWS = 3


@check(
    "D13",
    level="P",
    title="a reset forgets everything",
    source="docs/background/hybrids.md#resets",
    passes=7,
)
@perturb_zero_init
def exact_reset(ctx: Context) -> Check:
    """3 rows of random tokens, each a document A and a document B that begins at another place: the logits of
    B after `resets`, against those of B alone; and B from a cache that holds A, with a reset at its first
    token. max |Δ| / std(logits), row by row. That A does reach B without the reset is asked as well.

    Threshold: <= 1e-4 in float32 (2e-2 below), as C5: the scan rounds differently when it is cut differently.
    Nothing else of A may be there. A model in which A never reaches B has nothing to reset.
    Caught: the state-jitter test of GroundThink, which looked for {quantum, particle, ...} in a text about
    baking and never fed the first document; resets that left zeros where a document begins with h0.
    Sabotage: a model that drops `resets`; one that resets the state and not the convolution.
    """
    ctx.need("model")
    if "resets" not in inspect.signature(getattr(ctx.model, "forward", len)).parameters:
        raise NotMeasurable("forward() takes no resets")
    T = max(16, min(probe_length(ctx), 48))
    tokens = random_tokens(ctx, ROWS, T, stream=130)
    starts = [T // 3 + 2 * row for row in range(ROWS)]
    with training_mode(ctx.model, False):
        joined = _logits(ctx, tokens, resets=np.arange(T)[None] == np.array(starts)[:, None])
        leaked = _logits(ctx, tokens)
        alone = [_logits(ctx, tokens[i : i + 1, start:])[0] for i, start in enumerate(starts)]
        carried = _through_cache(ctx, tokens[:1], starts[0]) if hasattr(ctx.model, "make_cache") else None
    scale = logit_spread(joined)
    if not any(logit_deviation(leaked[i, starts[i] :], alone[i], scale) > 1e-4 for i in range(ROWS)):
        raise NotMeasurable("nothing of the first document reaches the second one anyway, see C1")
    found = {f"row {i}": logit_deviation(joined[i, starts[i] :], alone[i], scale) for i in range(ROWS)}
    if carried is not None:
        found["from a cache"] = logit_deviation(carried, alone[0], scale)
    return judge_by_band(
        "D13",
        found,
        Band(high=dtype_tolerance(ctx.model, 1e-4)),
        "a reset must reach every array of the cache, convolutions and token shifts too, and put back h0",
    )


def _logits(ctx: Context, tokens: np.ndarray, cache=None, resets: np.ndarray | None = None) -> np.ndarray:
    given = {} if resets is None else {"resets": mx.array(resets)}
    return to_numpy(ctx.model.forward(mx.array(tokens), cache, **given).logits)


def _through_cache(ctx: Context, tokens: np.ndarray, start: int) -> np.ndarray:
    """Logits of B, whose first token is a reset, from the cache that A left."""
    cache = ctx.model.forward(mx.array(tokens[:, :start]), ctx.model.make_cache()).cache
    second = tokens[:, start:]
    return _logits(ctx, second, cache, np.arange(second.shape[1])[None] == 0)[0]
