"""May it be said that two arms differ? Independent units, interval, effect, what could have been missed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kssm_mlx.checks.core.evidence import group_contexts
from kssm_mlx.checks.core.probes import as_run
from kssm_mlx.checks.core.registry import (
    Check,
    Context,
    NotMeasurable,
    Verdict,
    check,
    require_value,
    verdict,
)
from kssm_mlx.data.batches import evaluation_windows
from kssm_mlx.metrics import stats
from kssm_mlx.metrics.stats import Comparison
from kssm_mlx.training.evaluation import window_losses

WINDOWS, FEWEST = 64, 30


@check(
    "C35",
    level="G",
    title="the difference is one",
    source="docs/background/phase-grafts.md#statistics",
    false_alarm=stats.ALPHA,
)
def arms_differ(ctx: Context) -> Check:
    """Each arm (runs that differ in their seed only) against the baseline, on 64 disjoint windows of the same
    held-out text, a window's loss averaged over the seeds: paired difference, 95 % interval, Cohen's d, p by
    Student's t and Holm over the arms, and the smallest difference that would have been found in 4 of 5 such
    comparisons. With two seeds or more on both sides also Welch's t over the seeds.

    Threshold: at least 30 units, p < 0.05 and |d| >= 0.2, over windows and over seeds; less is "no difference
    found", with what could have been missed, never "no effect". Without variance it is "undetermined". One
    seed on a side warns: these weights differ, the arms need not. Two may miss six standard deviations.
    Caught: r = -0.12 called significant (20 prompts repeated 5 times, p 0.23); p = NaN of identical greedy
    texts called "no effect"; verdicts by counting significant tests.
    Sabotage: two seeds of one arm; the same run twice; a text of fewer than 30 windows.
    """
    runs, baseline = require_value(ctx.runs, "runs"), require_value(ctx.baseline, "baseline")
    _refuse_other_tokens([*runs, *baseline])
    base = _losses(baseline)
    losses = {name: _losses(arm) for name, arm in group_contexts(runs).items()}
    found = {name: stats.compare_paired(_by_window(of), _by_window(base)) for name, of in losses.items()}
    found = dict(zip(found, stats.correct_for_multiplicity(list(found.values()))))
    seeds = {name: stats.compare_unpaired(of.mean(axis=1), base.mean(axis=1)) for name, of in losses.items()}
    judged = {name: _judge(found[name], seeds[name]) for name in found}
    worst = max(judged, key=lambda name: ("pass", "warn", "fail").index(judged[name][0]))
    return verdict(
        "C35",
        judged[worst][0],
        f"{worst}: {found[worst]} windows{judged[worst][1]}",
        f">= {FEWEST} windows, p < {stats.ALPHA:g} and |d| >= {stats.SMALL:g}, two seeds per arm",
        "claim only that a difference above the last number would have been found, or run more seeds",
        windows={name: vars(comparison) for name, comparison in found.items()},
        seeds={name: vars(comparison) for name, comparison in seeds.items()},
    )


def _judge(windows: Comparison, seeds: Comparison) -> tuple[Verdict, str]:
    """The verdict on an arm, and what the seeds add to it in words."""
    if windows.n < FEWEST or windows.verdict != "different":
        return "fail", ""
    if seeds.n < 2:
        return "warn", "; one seed per arm, so their noise is not known"
    if seeds.verdict != "different" or seeds.difference * windows.difference < 0:
        return "fail", f"; over seeds {seeds}"
    return "pass", f"; over seeds p {seeds.p:.2g}"


def _refuse_other_tokens(runs: list[Context]) -> None:
    tokens = {run.data.index["files"]["validation.bin"]["sha256"] for run in runs}
    contexts = {run.recipe.train.context for run in runs}
    if len(tokens) > 1 or len(contexts) > 1:
        raise NotMeasurable("the runs were evaluated on other tokens or windows, which do not pair; see C34")


def _losses(runs: Sequence[Context]) -> np.ndarray:
    """Nats/token of each run on each window. Shapes: [runs, windows]."""
    return np.stack([window_losses(as_run(run), _windows(run), compile=False) for run in runs])


def _windows(run: Context):
    train = run.recipe.train
    return evaluation_windows(run.data.validation, WINDOWS * train.context, train.context, train.batch_size)


def _by_window(losses: np.ndarray) -> dict[int, float]:
    return dict(enumerate(losses.mean(axis=0)))
