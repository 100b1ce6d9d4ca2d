"""The matrix: rows and controls, measured one by one and given as plain values."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Check, run_checks
from kssm_mlx.experiments.detection import (
    broken_claims,
    broken_inputs,  # noqa: F401  registers its rows
    broken_models,  # noqa: F401
    broken_tasks,  # noqa: F401
    broken_weights,  # noqa: F401
)
from kssm_mlx.experiments.detection.bench import Bench
from kssm_mlx.experiments.detection.sabotage import SABOTAGES, Sabotage
from kssm_mlx.runner.prepare import prepare_recipe_context
from kssm_mlx.training import recipe as recipes

COMPARED = ("C34", "C35", "C36")  # what a claim is asked; the rest looks at its first run
APART = ("C39",)  # looks at the file system alone: asked of controls, and in its own row

Said = list[dict[str, Any]]


def rows() -> dict[str, Sabotage]:
    """Every row: the published runs that failed, then the sabotages."""
    return {**{name: _failed_run(name) for name in failed_runs()}, **SABOTAGES}


def failed_runs() -> list[str]:
    """The recipes of recipes/failures that are meant to be stopped."""
    return [name for name in recipes.list_failures() if recipes.load(name).failure]


def _failed_run(name: str) -> Sabotage:
    recipe = recipes.load(name)
    expected = tuple(recipe.failure.stopped_by) if recipe.failure else ()
    return Sabotage(name, recipe.about.question, expected, lambda _: prepare_recipe_context(name), "P", True)


def measure(row: Sabotage, bench: Bench, ids: Iterable[str] | None = None) -> dict[str, Any]:
    """What the checks say of a row: those of its level, or `ids`.

    caught: id -> what it got; crashed: ids that could not even measure.
    """
    try:
        context = replace(row.breaks(bench), untrained=row.untrained)
        found = suite.run_suite(context, ids or _select_ids(row))
    finally:
        bench.mend()
        gc.collect()
    return {
        "what": row.what,
        "expected": list(row.expected),
        "caught": {c.id: without_places(c.got) for c in found if c.verdict == "fail"},
        "warned": [c.id for c in found if c.verdict == "warn"],
        "silent": [c.id for c in found if c.verdict == "pass"],
        "crashed": [c.id for c in found if "traceback" in c.numbers],
    }


def _select_ids(row: Sabotage) -> list[str]:
    """The level of a row, with what it expects beyond that; all checks where it names none."""
    ids = suite.list_suite(row.level) if row.level else tuple(run_checks())
    return list(dict.fromkeys([*(id for id in ids if id not in APART), *row.expected]))


def healthy(family: str, seed: int, bench: Bench) -> Said:
    """What all checks say of a family's finished run, and those of level P before its step 1."""
    done = suite.run_suite(bench.train_run(family, seed), list(run_checks()))
    begun = suite.run_suite(bench.fresh(family, seed), "P")
    gc.collect()
    return _list_verdicts([*done, *begun])


def sound_claim(bench: Bench) -> Said:
    """The same of two arms that do differ, compared as they should be."""
    return _list_verdicts(suite.run_suite(broken_claims.sound_claim(bench), COMPARED))


def _list_verdicts(checks: Iterable[Check]) -> Said:
    measured = (c for c in checks if c.verdict != "not measurable")
    return [{"id": c.id, "verdict": c.verdict, "got": without_places(c.got)} for c in measured]


def without_places(said: str) -> str:
    """Without the folders of this machine: files by their names."""
    return re.sub(r"(?:(?<=file:)|(?<!\S))/\S*/", "", said)


def count_verdicts(said: Said, seeds: int) -> dict[str, Any]:
    """Of a control: how many verdicts of how many checks; asked: id -> its verdicts, which docs/checks.md
    counts; failed, warned: id -> what it got, each time.
    """
    return {
        "seeds": seeds,
        "verdicts": len(said),
        "asked": Counter(c["id"] for c in said),
        "checks": len({c["id"] for c in said}),
        "failed": _by_id(said, "fail"),
        "warned": _by_id(said, "warn"),
    }


def _by_id(said: Said, verdict: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for check in said:
        if check["verdict"] == verdict:
            found.setdefault(check["id"], []).append(check["got"])
    return found
