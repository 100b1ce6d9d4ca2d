"""Does what a token says decide how long it is kept, and is anything kept at all?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kssm_mlx.checks.core.conditions import read_passage, run_arm
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check
from kssm_mlx.checks.core.thresholds import Band, judge_by_band
from kssm_mlx.metrics.state import half_life

SELECTION = Band(low=1e-6, warn_low=1e-4)
COLLAPSED = Band(high=0.9, warn_high=0.5)
EXTREME, YOUNG = (0.01, 0.99999), 500
QUARTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
SMALLEST = 1e-30


@check(
    "D7",
    level="S",
    title="the token decides what is kept",
    source="docs/background/hybrids.md#selection",
    needs_training=True,
)
def token_decides_decay(ctx: Context) -> Check:
    """Per channel of every block the variance over tokens of the time step ("dt" in the trace), or of the
    rate -ln decay where there is none, over its squared mean; the median over channels, on 8 rows of held-out
    text.

    Threshold: >= 1e-6 (warns below 1e-4, and before step 500, as RWKV-7 begins without selection): a relative
    spread below 1e-3 is the same time step for all tokens, and the selective state-space model is a fixed
    filter. A decay that is a parameter selects nothing by design.
    Caught: nothing by name; GroundThink names it a reason to stop and gives no formula.
    Sabotage: a projection of the time step that is zero.
    """
    ctx.need("model", "data")
    signals = _signals(run_arm(ctx.model, read_passage(ctx), ctx.seed).trace)
    if not signals:
        raise NotMeasurable("no time step and no decay in the trace depend on the token")
    spread = {name: _relative_variance(x) for name, x in signals.items()}
    found = judge_by_band("D7", spread, SELECTION, "the time step ignores its input: look at its projection")
    return replace(found, verdict="warn") if found.verdict == "fail" and ctx.step < YOUNG else found


def _signals(trace: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Time steps, and rates of decay where there is no time step. Shapes: [B, T, ...]."""
    found = {}
    for name, x in trace.items():
        block, _, quantity = name.partition("/")
        alone = quantity == "decay" and f"{block}/dt" not in trace
        if x.ndim > 2 and (quantity in ("dt", "rwkv_decay") or alone):
            found[name] = x if quantity == "dt" else -np.log(np.maximum(x, SMALLEST))
    return found


def _relative_variance(x: np.ndarray) -> float:
    channels = x.astype(np.float64).reshape(-1, int(np.prod(x.shape[2:])))
    mean = channels.mean(axis=0)
    return float(np.median(channels.var(axis=0) / np.maximum(mean**2, SMALLEST)))


@check(
    "D8",
    level="R",
    also="S",
    title="decays stay between the extremes",
    source="docs/background/hybrids.md#decay",
)
def decay_collapse(ctx: Context) -> Check:
    """λ, what is left of a channel of the state after a token: "decay" in the trace, exp of "lyapunov" for
    oscillators, whose populations forget by what they hold; the geometric mean over 8 rows of held-out text.
    The share of channels with λ < 0.01 or λ > 0.99999, by memory; and the deciles and quartiles of the
    half-lives ln 2 / -ln λ in tokens.

    Threshold: <= 90 % (warns above 50 %), as GroundThink proposes: below 0.01 a channel knows the last token
    only, above 0.99999 it keeps more than half for 69,000 tokens and fills up. (There it is 0.9999, where
    their own identity initialisation begins on purpose.)
    Caught: version 3, which clamped decays to [0.01, 0.99] and then inverted them: the channel that was to
    remember best forgot fastest.
    Sabotage: decays of 1e-4 everywhere; of 1 everywhere.
    """
    ctx.need("model", "data")
    decays = retentions(run_arm(ctx.model, read_passage(ctx), ctx.seed).trace)
    if not decays:
        raise NotMeasurable('the trace has no "block00/decay" and no "block00/lyapunov"')
    low, high = EXTREME
    share = {name: float(np.mean(~((x >= low) & (x <= high)))) for name, x in decays.items()}
    found = judge_by_band(
        "D8", share, COLLAPSED, "decays have run to 0 or 1: clip them, or exempt them from decay"
    )
    lives = {name: [half_life(q) for q in np.quantile(x, QUARTILES)] for name, x in decays.items()}
    found.numbers["half_lives"] = lives
    return found


def retentions(trace: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """λ of every channel, by memory. Shapes: [C] each."""
    found = {}
    for name, x in trace.items():
        block, _, quantity = name.partition("/")
        twins = any(f"{block}/{branch}_decay" in trace for branch in ("rwkv", "mamba"))
        if quantity == "lyapunov":
            found[name] = np.exp(x.astype(np.float64).reshape(-1, x.shape[-1]).mean(axis=0))
        elif quantity in ("rwkv_decay", "mamba_decay") or (quantity == "decay" and not twins):
            log = np.log(np.maximum(x.astype(np.float64), SMALLEST))
            found[name] = np.exp(log.reshape(-1, *x.shape[2:]).mean(axis=0).ravel() if x.ndim > 2 else log)
    return found
