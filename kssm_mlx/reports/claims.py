"""What runs allow one to say: a sentence for each arm against the first, never without what it rests on.

Runs that differ in train.seed alone are one arm. The numbers are those of the last evaluation, in nats/token
where tokenizer and text are the same, else in bits/byte; of two texts nothing is said. With two seeds or more
on both sides the seeds are compared, otherwise the windows of the text, which say that the weights differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kssm_mlx.errors import ConfigError
from kssm_mlx.metrics import stats
from kssm_mlx.metrics.language import BitsPerByte, Nats
from kssm_mlx.metrics.stats import Comparison
from kssm_mlx.reports.run import Run
from kssm_mlx.runs.arms import group_by_arm, seed_of


@dataclass(frozen=True)
class Measured:
    """The last evaluation of a run in both units; spread: standard deviation over its windows, in nats."""

    nats: Nats
    bits: BitsPerByte
    spread: float
    windows: int


class Found(NamedTuple):
    """rests: the evidence in words."""

    unit: str
    comparison: Comparison
    rests: str


def state_claims(runs: list[Run]) -> list[str]:
    """One sentence per arm but the first; p is corrected for their number."""
    noted = [f"{run.name} is left out: {why}." for run in runs if (why := _explain_unusable(run))]
    usable = [run for run in runs if not _explain_unusable(run)]
    if said := describe_scored(usable):
        noted.append(f"{said[0].upper()}{said[1:]}.")
    arms = _arms(usable)
    if not arms:
        return [*noted, "None of the runs has an evaluation: nothing can be said."]
    (first, base), *others = arms.items()
    if not others:
        return [*noted, f"{first} is one arm, of {_count(base)}: nothing to compare it with."]
    asked = {name: _compare(arm, base) for name, arm in others}
    found = {name: answer for name, answer in asked.items() if isinstance(answer, Found)}
    corrected = dict(
        zip(found, stats.correct_for_multiplicity([answer.comparison for answer in found.values()]))
    )
    return noted + [
        f"{name} against {first}, {found[name].unit}: {corrected[name]}. Evidence: {found[name].rests}."
        if name in found
        else f"{name} and {first}: nothing can be said; {answer}."
        for name, answer in asked.items()
    ]


def describe_scored(runs: Sequence[Run]) -> str:
    """How the held-out tokens of the last evaluations differ, in number or context; "" where they do not."""
    scored = {}
    for run in runs:
        row = run.evaluations[-1] if run.evaluations else {}
        if "tokens" in row:
            context = row.get("context") or run.recipe.get("train", {}).get("context")
            scored[f"{row['tokens']:,}" + (f" of context {context:,}" if context else "")] = None
    return f"scored on different held-out tokens: {' against '.join(scored)}" if len(scored) > 1 else ""


def _explain_unusable(run: Run) -> str:
    """Why a run has no number to compare; "" where it has."""
    evaluations = run.of("eval")
    if not evaluations:
        return "it has no evaluation"
    numbers = [evaluations[-1].get(name) for name in ("nats_per_token", "bits_per_byte")]
    known = all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
    return "" if known else "the loss of its last evaluation is not a number"


def _arms(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs by arm, one of each seed, by the name of the first."""
    groups = group_by_arm(runs, lambda run: run.recipe)
    arms = [list({seed_of(run.recipe): run for run in reversed(group)}.values())[::-1] for group in groups]
    return {arm[0].name: arm for arm in arms}


def _compare(arm: list[Run], base: list[Run]) -> Found | str:
    """What was found, or why nothing can be."""
    ours, theirs = ([_read_measured(run) for run in runs] for runs in (arm, base))
    try:
        unit = _unit([*theirs, *ours])
    except ConfigError as e:
        return str(e)
    excused = _describe_excused([*arm, *base])
    if min(len(arm), len(base)) > 1:
        return Found(unit, _over_seeds(ours, theirs, unit), f"{min(len(arm), len(base))} seeds{excused}")
    rests = "1 run, over windows of the text: the noise of seeds is not in it"
    return Found(unit, _over_windows(ours[0], theirs[0], unit), rests + excused)


def _read_measured(run: Run) -> Measured:
    row, index = run.evaluations[-1], run.manifest.get("data", {})
    text = "".join(str(index.get(part, "")) for part in ("corpus", "split"))
    tokenizer = index.get("tokenizer", {}).get("digest", "")
    windows = row.get("windows") or _windows(run)
    return Measured(
        nats=Nats(row["nats_per_token"], tokenizer=tokenizer, text=text),
        bits=BitsPerByte(row["bits_per_byte"], text=text),
        spread=(math.nan if row.get("se") is None else row["se"]) * math.sqrt(windows),
        windows=windows,
    )


def _windows(run: Run) -> int:
    """How many windows an evaluation reads, of a run that did not write it down: of a task its rows."""
    index, context = run.manifest.get("data", {}), max(1, run.recipe.get("train", {}).get("context", 1))
    if index.get("task"):
        rows = index.get("splits", {}).get("validation", {}).get("documents", 1)
        return max(1, min(rows, run.recipe.get("eval", {}).get("tokens", context) // context))
    return run.evaluations[-1].get("tokens", 0) // context


def _unit(measured: list[Measured]) -> str:
    """Raises: ConfigError for values that meet in neither unit."""
    try:
        [m.nats - measured[0].nats for m in measured]
    except ConfigError:
        [m.bits - measured[0].bits for m in measured]
        return measured[0].bits.unit
    return measured[0].nats.unit


def _over_seeds(ours: list[Measured], theirs: list[Measured], unit: str) -> Comparison:
    return stats.compare_unpaired(*([_value_in(m, unit) for m in side] for side in (ours, theirs)))


def _over_windows(ours: Measured, theirs: Measured, unit: str) -> Comparison:
    # A loss of 0 has no spread to convert.
    scales = [_value_in(m, unit) / (m.nats.value or 1.0) for m in (ours, theirs)]
    sides = zip((ours, theirs), scales, strict=True)
    moments = [(_value_in(m, unit), m.spread * scale, m.windows) for m, scale in sides]
    return stats.compare_moments(*moments)


def _value_in(measured: Measured, unit: str) -> float:
    return measured.nats.value if unit == measured.nats.unit else measured.bits.value


def _count(arm: list[Run]) -> str:
    return "1 run" if len(arm) == 1 else f"{len(arm)} seeds"


def _describe_excused(runs: list[Run]) -> str:
    """The checks that any of the runs failed, and was let go on all the same."""
    verdicts = [check for run in runs for stage in run.checks.values() for check in stage]
    ids = {check["id"] for check in verdicts if check["verdict"] in ("fail", "waived")}
    return f"; failed or waived: {', '.join(sorted(ids))}" if ids else ""
