"""From results.jsonl to what a report shows. Nothing but that file is read."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np

from kssm_mlx.experiments.arms import combinations, label_of, list_variants
from kssm_mlx.experiments.decide import Verdict, decide
from kssm_mlx.experiments.design import Claim, Design
from kssm_mlx.experiments.execute import design_of
from kssm_mlx.experiments.schedule import choose_settings
from kssm_mlx.metrics import stats
from kssm_mlx.reports.experiment import UNITS, ArmSummary, ClaimSummary, Summary
from kssm_mlx.runs.experiment import Results, RunResult, read_results

SIGNS = {"lower": "<", "higher": ">", "different": "≠", "equal": "="}


def summarize(path: Path) -> Summary:
    """Of an experiment's folder or its results.jsonl."""
    results = read_results(path)
    design = design_of(results)
    last = results.designs[-1]
    return Summary(
        name=last["name"],
        question=design.about.question,
        metric=design.metric.name,
        unit=UNITS.get(design.metric.name, ""),
        smoke=bool(last.get("smoke")),
        fixed=_tell_fixed(results),
        arms=summarize_arms(design, results),
        claims=[_summarize_claim(verdict) for verdict in decide(design, results)],
        chosen=_tell_chosen(design, results),
        notes=_tell_notes(design, results),
    )


def summarize_arms(design: Design, results: Results) -> list[ArmSummary]:
    """Every arm with the runs that it has."""
    return [_summarize_arm(design, results, variant.name) for variant in list_variants(design)]


def _summarize_arm(design: Design, results: Results, name: str) -> ArmSummary:
    runs = [run for run in results.chosen if run.arm == name]
    values = {r.seed: r.metrics[design.metric.name] for r in runs if design.metric.name in r.metrics}
    mean, low, high = _mean_and_interval([*values.values()])
    # Told only where all runs agree.
    sizes = {run.metrics.get("parameters") for run in runs} - {None}
    return ArmSummary(
        name=name,
        values=values,
        mean=mean,
        low=low,
        high=high,
        parameters=sizes.pop() if len(sizes) == 1 else None,
        curves=[run.curve for run in runs if run.curve],
        failed={run.seed: run.failed for run in runs if run.failed},
        settings=runs[0].settings if runs else {},
        lengths=_by_length(runs),
    )


def _by_length(runs: list[RunResult]) -> dict[int, list[float]]:
    """Accuracy at the last place of rows of each test length, of the runs in order of seeds."""
    found: dict[int, list[float]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        for name, value in run.metrics.items():
            metric, at, length = name.partition("@")
            if at and metric == "accuracy_last":
                found.setdefault(int(length), []).append(value)
    return dict(sorted(found.items()))


def _mean_and_interval(values: list[float]) -> tuple[float, float, float]:
    """The mean over seeds and its 95 % interval, by Student's t; NaN where there is none."""
    if not values:
        return math.nan, math.nan, math.nan
    found = stats.compare_paired(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    return float(np.mean(values)), found.low, found.high


def _summarize_claim(verdict: Verdict) -> ClaimSummary:
    claim = verdict.claim
    short = _shorten_claim(claim, verdict.metric)
    return ClaimSummary(
        sentence=f"{claim.says} ({short})" if claim.says else short,
        question=short,
        word=verdict.word,
        unit=UNITS.get(verdict.metric, ""),
        comparison=verdict.comparison,
        permutation=math.nan if claim.rule == "equal" else verdict.permutation,
        test="two one-sided tests" if claim.rule == "equal" else "t",
        level=verdict.level,
        seeds=len(verdict.seeds) or verdict.comparison.n,
        paired=verdict.paired,
        lacking=verdict.lacking,
        windows=verdict.windows,
    )


def _shorten_claim(claim: Claim, metric: str) -> str:
    """ "kuramoto < linear", with the metrics where they differ."""
    sign = SIGNS[claim.rule]
    if claim.value is not None:
        return f"{claim.arm}: {metric} {sign} {claim.value:g}"
    other = claim.against or claim.arm
    if claim.against_metric:
        return f"{claim.arm}: {metric} {sign} {other}: {claim.against_metric}"
    return f"{claim.arm} {sign} {other}" + (f", {metric}" if claim.metric else "")


def _tell_fixed(results: Results) -> list[str]:
    """When the design was written down, and each change of it since."""
    first, *changes = results.designs
    there = first.get("runs_before", 0)
    when = f"when {there} trained runs lay in its folder ALREADY" if there else "before the first run"
    lines = [
        f"Question, arms, metric and rule were fixed on {first['fixed']}, {when}; digest {first['digest']}."
    ]
    for row in changes:
        lines.append(
            f"The design was CHANGED on {row['fixed']}, after {row.get('runs_before', 'some')} runs; "
            f"digest {row['digest']}."
        )
    return lines


def _tell_chosen(design: Design, results: Results) -> dict[str, str]:
    parts = {run.arm: {"metrics": run.metrics} for run in results.runs if run.purpose == "select"}
    chosen = choose_settings(design, list_variants(design), parts)
    edges = _edges(design, chosen)
    return {arm: f"{label_of(settings)}{edges[arm]}" for arm, settings in chosen.items()}


def _edges(design: Design, chosen: dict) -> dict[str, str]:
    """A choice at the end of its range says that the best may lie beyond."""
    choices = list(combinations(design.select.grid)) if design.select else []
    ends = [choices[0], choices[-1]] if len(choices) > 2 else []
    return {arm: ", at the end of the range" if settings in ends else "" for arm, settings in chosen.items()}


def _tell_notes(design: Design, results: Results) -> list[str]:
    notes = [_tell_count(design, results)]
    for word, meaning in (("fail", "failed"), ("waived", "waived"), ("warn", "warned")):
        count = Counter(id for run in results.chosen for id in run.checks.get(word, []))
        if count:
            notes.append(
                f"Checks that {meaning}: " + ", ".join(f"{id} in {n} runs" for id, n in count.items()) + "."
            )
    for what in ("mlx", "device", "python"):
        found = sorted(
            {str(run.environment.get(what)) for run in results.chosen if run.environment.get(what)}
        )
        if found:
            notes.append(f"{what} {', '.join(found)}.")
    if len({_data_of(run) for run in results.chosen if run.digests}) > 1:
        notes.append(
            "The runs did not all see the same data: look at their digests before believing a difference."
        )
    return notes


def _tell_count(design: Design, results: Results) -> str:
    asked = len(list_variants(design)) * len(design.run.seeds)
    stopped = sum(bool(run.failed) for run in results.chosen)
    return f"{len(results.chosen)} of {asked} runs are done, {stopped} of them stopped by their checks."


def _data_of(run: RunResult) -> str:
    return str(sorted((k, v) for k, v in run.digests.items() if k.endswith("_tokens")))
