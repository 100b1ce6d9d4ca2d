"""Does the model do what a causal sequence model does? Seconds, untrained or trained, on random tokens.

Deviations are max |Δ logit| in units of the standard deviation of the logits, so that a threshold means the
same for a fresh model (logits of 0.02) and a trained one (logits of 10). Before step 1, projections that
begin at zero are woken for the measurement (`probes.perturb_zero_init`).
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from kssm_mlx import models
from kssm_mlx.checks.core.conditions import mean_kl
from kssm_mlx.checks.core.probes import (
    dtype_tolerance,
    logit_deviation,
    logit_spread,
    logits_of,
    perturb_zero_init,
    probe_length,
    random_tokens,
    rounding_band,
    swap_token,
    to_numpy,
    vocabulary_size,
)
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.checks.core.thresholds import Band, judge_by_band
from kssm_mlx.models.base import Clamp, Intervention, flatten, training_mode, with_parameters

NOISE_OFF = {"dropout": 0.0, "noise": "off"}  # fields of a configuration, and what they are without noise


@check(
    "C1",
    level="P",
    title="earlier tokens reach the prediction",
    source="docs/background/k-ssm.md#no-path-from-token-to-token",
    passes=8,
)
@perturb_zero_init
def receptive_field(ctx: Context) -> Check:
    """Swap the token at lag k = 1, 2, 4 .. T/2 (and 8) before the last position in 8 random sequences;
    e_k = max |Δ logits at the last position| / std(logits), under equal noise where a model draws in
    evaluation. The reach is the longest k with e_k > 1e-4.

    Threshold: e_1 > 1e-4 and e_8 > 1e-4: a hundred times float32 rounding, yet passed by any recurrence whose
    state outlives a few tokens. The reach is reported, not judged: no family here declares a span.
    Caught: K-SSM v1, v2 and v3, whose reach is 0 tokens: nothing in them mixes over time.
    Sabotage: a model that reads every token alone.
    """
    ctx.need("model")
    T = max(probe_length(ctx), 10)
    lags = sorted({8, *(2**i for i in range(T.bit_length()) if 2**i <= T // 2)})
    base = random_tokens(ctx, 8, T)
    rows = np.tile(base, (len(lags), 1, 1))
    for row, k in zip(rows, lags):
        row[:, -1 - k] = swap_token(row[:, -1 - k], vocabulary_size(ctx.model), stream=k)
    reference, *changed = (_under_equal_noise(ctx, row)[:, -1] for row in (base, *rows))
    scale = logit_spread(reference)
    e = {k: logit_deviation(c, reference, scale) for k, c in zip(lags, changed)}
    reach = max((k for k in lags if e[k] > 1e-4), default=0)
    return verdict(
        "C1",
        e[1] > 1e-4 and e[8] > 1e-4,
        f"reach {reach} tokens, e_1 {e[1]:.1e}, e_8 {e[8]:.1e}",
        "e_1 and e_8 > 1e-4",
        "the prediction ignores earlier tokens: nothing mixes across time, or the state decays far too fast",
        reach=reach,
        e={str(k): v for k, v in e.items()},
    )


def _under_equal_noise(ctx: Context, tokens: np.ndarray) -> np.ndarray:
    mx.random.seed(ctx.seed)
    return logits_of(ctx.model, tokens)


@check(
    "C2",
    level="P",
    title="no token sees its future",
    source="docs/background/phase-grafts.md#a-mean-over-time-and-batch, "
    "docs/background/allostasis.md#look-ahead",
    passes=8,
)
@perturb_zero_init
def future_leak(ctx: Context) -> Check:
    """Change every token after t, for t at a quarter, half and three quarters of 4 random sequences; the
    leak is max |Δ logits at positions <= t| / std(logits), in training and in evaluation mode.

    Threshold: <= 1e-5 in float32, 2e-2 below: the rounding of the same sums. A causal model's past is the
    same arithmetic on the same numbers, so it is usually exactly 0.
    Caught: the phase core in a forward hook (mean over time), PhaseAttention (no causal mask).
    Sabotage: a model that adds the mean of its logits over time.
    """
    ctx.need("model")
    T = max(probe_length(ctx), 8)
    base = random_tokens(ctx, 4, T, stream=2)
    leaks = {}
    for training in (True, False):
        reference = logits_of(ctx.model, base, training, ctx.seed)
        scale = logit_spread(reference)
        for t in (T // 4, T // 2, 3 * T // 4):
            tokens = base.copy()
            # Every later token, not one: a leak through a mean or a norm is spread over all of them.
            tokens[:, t:] = swap_token(base[:, t:], vocabulary_size(ctx.model), stream=t)
            past = logits_of(ctx.model, tokens, training, ctx.seed)[:, :t]
            leaks[f"{'train' if training else 'eval'}, t={t}"] = logit_deviation(
                past, reference[:, :t], scale
            )
    return judge_by_band(
        "C2",
        leaks,
        Band(high=dtype_tolerance(ctx.model, 1e-5)),
        "future tokens change earlier logits: look for a mean, norm or attention over time without a mask",
    )


@check(
    "C3",
    level="P",
    title="rows and calls are independent",
    source="docs/background/phase-grafts.md#a-mean-over-time-and-batch",
    passes=16,
)
@perturb_zero_init
def batch_leak(ctx: Context) -> Check:
    """Batch: change all other rows of a batch of 4 and compare the logits of row 0. Order: repeat the same
    input after 5 unrelated calls. Both in training and in evaluation mode, as max |Δ logits| / std(logits).

    Threshold: <= 1e-5 in float32 (2e-2 below); state between calls exists only in a cache that is passed
    in.
    Caught: the hook core, which averaged over the batch and kept a buffer between calls.
    Sabotage: a model that adds the mean of its logits over the batch; one that counts its calls.
    """
    ctx.need("model")
    base = random_tokens(ctx, 4, min(probe_length(ctx), 64), stream=3)
    others = base.copy()
    others[1:] = swap_token(base[1:], vocabulary_size(ctx.model))
    leaks = {}
    for training in (True, False):
        word = "train" if training else "eval"
        reference = logits_of(ctx.model, base, training, ctx.seed)
        scale = logit_spread(reference)
        row = logits_of(ctx.model, others, training, ctx.seed)[0]
        leaks[f"other rows, {word}"] = logit_deviation(row, reference[0], scale)
        # Of other shapes and content, so that a buffer between calls would be another one.
        for i in range(5):
            logits_of(ctx.model, random_tokens(ctx, 2, 9, stream=10 + i), training, ctx.seed + i)
        again = logits_of(ctx.model, base, training, ctx.seed)
        leaks[f"after 5 calls, {word}"] = logit_deviation(again, reference, scale)
    return judge_by_band(
        "C3",
        leaks,
        Band(high=dtype_tolerance(ctx.model, 1e-5)),
        "an answer depends on other rows or earlier calls: look for a mean over axis 0 or a stored buffer",
    )


@check(
    "C4",
    level="P",
    title="evaluation runs the model that was trained",
    source="docs/background/phase-grafts.md#the-hook-that-does-nothing-in-evaluation",
    also="S",
    passes=2,
)
@perturb_zero_init
def train_eval_parity(ctx: Context) -> Check:
    """max |logits in training mode - logits in evaluation mode| / std(logits) on 4 random sequences; those in
    training mode with noise and dropout off (of a model that draws, from one of its class and weights whose
    configuration has neither), those in evaluation mode as the model gives them. After 20 or more steps, and
    where the model can clamp a block's "output": mean KL(model || model with the block's output held at 0)
    over the tokens, for each block.

    Threshold: parity <= 1e-5 (2e-2 below float32): without its noise, what is trained and what is evaluated
    are one function. KL >= 1e-4 nats per block: a trained block that changes the prediction by less is not in
    the path.
    Caught: the hook that returned the unmodified output in eval: intervention and baseline were the same
    arm.
    Sabotage: a model whose blocks work in training mode only; one whose second block adds nothing; dropout
    that stays on in evaluation.
    """
    ctx.need("model")
    tokens = random_tokens(ctx, 4, min(probe_length(ctx), 64), stream=4)
    trained_view = _trained_without_noise(ctx, tokens)
    evaluated = logits_of(ctx.model, tokens)
    gap, limit = (
        logit_deviation(trained_view, evaluated, logit_spread(trained_view)),
        dtype_tolerance(ctx.model, 1e-5),
    )
    kl = _block_influence(ctx, tokens) if ctx.step >= 20 and _clamps_output(ctx.model) else {}
    # `not >=`: a KL that is NaN is not in the path either.
    idle = [block for block, nats in kl.items() if not nats >= 1e-4]
    weakest = f"; weakest block changes the prediction by {min(kl.values()):.1e} nats" if kl else ""
    return verdict(
        "C4",
        gap <= limit and not idle,
        f"train/eval gap {gap:.1e}{weakest}",
        f"gap <= {limit:g}" + ("; each block >= 1e-4 nats" if kl else ""),
        f"block {', '.join(map(str, idle))} does nothing in evaluation"
        if idle
        else "training and evaluation mode are different functions: look for a branch on `training`",
        gap=gap,
        block_kl={str(k): v for k, v in kl.items()},
    )


def _trained_without_noise(ctx: Context, tokens: np.ndarray) -> np.ndarray:
    """Logits in training mode with noise and dropout off. Raises: NotMeasurable where they cannot be."""
    model = ctx.model
    if not getattr(model, "stochastic", False):
        return logits_of(model, tokens, True, ctx.seed)
    off = {name: value for name, value in NOISE_OFF.items() if hasattr(model.args, name)}
    knobs = [name for name in getattr(model, "knobs", ()) if name.endswith("sigma")]
    if not (off or knobs):
        raise NotMeasurable(f"the model draws in training, and its args have no {' or '.join(NOISE_OFF)}")
    # A model built without noise, and not a flag on this one: a flag might switch off more than the noise.
    weights, quiet = (flatten(model.parameters())), model
    if off:
        quiet = models.build(replace(model.args, **off))
        quiet.__class__ = type(model)
    silent = tree_unflatten(list({**weights, **dict.fromkeys(knobs, mx.array(0.0))}.items()))
    return with_parameters(quiet, silent, lambda: logits_of(quiet, tokens, True, ctx.seed))


def _clamps_output(model) -> bool:
    return "output" in getattr(model, "clamp_sites", ())


def _block_influence(ctx: Context, tokens: np.ndarray) -> dict[int, float]:
    """Block -> mean KL in nats between the model and the model whose block adds nothing."""
    full, kl = logits_of(ctx.model, tokens), {}
    for block in range(len(ctx.model.layers)):
        # What the block adds, not the stream: the blocks around it run as they did.
        held = Intervention((Clamp("output", 0.0, block=block),))
        with training_mode(ctx.model, False):
            ablated = to_numpy(ctx.model.forward(mx.array(tokens), intervention=held).logits)
        kl[block] = mean_kl(full, ablated)
    return kl


@check(
    "C5",
    level="P",
    title="parallel = step by step with carried state",
    source="docs/background/phase-grafts.md#a-token-without-its-state",
    passes=70,
)
@perturb_zero_init
def step_by_step(ctx: Context) -> Check:
    """Logits of 2 random sequences of T = 64 in one call, against one token at a time through
    `model(tokens, cache)`, which writes the state back in place, and against pieces of 1, 7, 24 and 32 tokens
    through `forward` and the cache it returns, where the model has it; max |Δ| / std(logits).

    Threshold: <= 1e-4 in float32 (2e-2 below): the scan and the recurrence round differently over 64 steps. A
    model that makes more of rounding, as populations between two sharp wells do, may differ by five times
    what its logits move by when every weight moves by one float32 step, up to 1e-2.
    Caught: measure.py and test_baseline, which fed one token at a time without state.
    Sabotage: a model that accepts the cache and ignores it; one whose cache lags by a token.
    """
    ctx.need("model")
    model = ctx.model
    if not hasattr(model, "make_cache"):
        raise NotMeasurable("the model has no make_cache()")
    tokens = random_tokens(ctx, 2, 64, stream=5)
    with training_mode(model, False):
        whole = to_numpy(model(mx.array(tokens)))
        pieces = {"token by token": _in_place(model, mx.array(tokens))}
        if hasattr(model, "forward"):
            pieces["pieces of 1, 7, 24, 32"] = _through_forward(model, mx.array(tokens), (1, 8, 32))
    scale = logit_spread(whole)
    found = {name: logit_deviation(to_numpy(piece), whole, scale) for name, piece in pieces.items()}
    return judge_by_band(
        "C5",
        found,
        rounding_band(model, tokens, found),
        "the carried state is not the state of the parallel form: put every recurrent quantity in the cache",
    )


def _in_place(model, tokens: mx.array) -> mx.array:
    """Logits [B, T, V], one token per call, with one cache that the calls write into."""
    cache, logits = model.make_cache(), []
    for token in mx.split(tokens, tokens.shape[1], axis=1):
        logits.append(model(token, cache))
        mx.eval(logits[-1])
    return mx.concatenate(logits, axis=1)


def _through_forward(model, tokens: mx.array, cuts: tuple[int, ...]) -> mx.array:
    """Logits [B, T, V], cut at `cuts`, each piece given the cache that the one before returned."""
    cache, logits = model.make_cache(), []
    for piece in mx.split(tokens, cuts, axis=1):
        out = model.forward(piece, cache)
        cache = out.cache
        logits.append(out.logits)
    return mx.concatenate(logits, axis=1)


@check(
    "C6",
    level="P",
    title="evaluation is deterministic",
    source="docs/background/k-ssm.md#noise-in-evaluation",
    passes=2,
)
@perturb_zero_init
def evaluation_is_deterministic(ctx: Context) -> Check:
    """max |Δ logits| of the same input of 4 random sequences given twice in evaluation mode.

    Threshold: exactly 0: the same arithmetic on the same numbers on the same machine.
    Caught: K-SSM v3, which drew phase noise in evaluation too.
    Sabotage: a model that adds noise of 1e-3 to its logits.
    """
    ctx.need("model")
    tokens = random_tokens(ctx, 4, min(probe_length(ctx), 64), stream=6)
    # No scale and no tolerance: on one machine the same sums are the same bits.
    difference = logit_deviation(logits_of(ctx.model, tokens), logits_of(ctx.model, tokens), 1.0)
    return verdict(
        "C6",
        difference == 0,
        f"difference {difference:.1e}",
        "0",
        "evaluation draws random numbers, or the logits are not finite: pass keys and draw only in training",
        difference=difference,
    )
