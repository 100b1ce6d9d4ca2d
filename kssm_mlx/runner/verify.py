"""`kssm verify`: the checks of a recipe, a run, weights or a claim, measured now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Check
from kssm_mlx.runner.base_models import ensure_base_model
from kssm_mlx.runner.targets import open_targets, recipes_among
from kssm_mlx.runner.train import train
from kssm_mlx.runs.layout import is_run
from kssm_mlx.runs.records import write_checks


def verify(
    *targets: str | Path,
    only: Iterable[str] | None = None,
    level: str | None = None,
    model: str | None = None,
    untrained: bool = False,
) -> list[Check]:
    """The checks of a recipe, a run folder or weights, or of run folders that a claim compares, measured now.

    only: ids of checks. level: a key of `LEVELS`; by default P, of a run P, S and R, of several G.
    model: `module:callable`, a model of your own, alone or in place of the recipe's. untrained: look for what
    was learned also where nothing was. The recipe's waivers hold. The verdicts are written into the
    checks.json of the runs, under "verify", or "claim" for several.
    """
    for recipe in recipes_among(targets):
        ensure_base_model(recipe.model, train)
    context = replace(open_targets(targets, model), untrained=untrained)
    waivers = context.recipe.waive if context.recipe else {}
    suite.require_known_waivers(waivers)
    looked_at = [*(context.runs or [context]), *(context.baseline or ())]
    runs = [of.run_folder for of in looked_at if of.run_folder and is_run(of.run_folder)]
    levels = [level] if level else ["G"] if context.runs else ["P", "S", "R"] if runs else ["P"]
    ids = list(only or ()) or dict.fromkeys(id for one in levels for id in suite.list_suite(one))
    found = suite.run_suite(context, ids, waivers)
    for folder in runs:
        write_checks(Path(folder), "claim" if context.runs else "verify", [c.to_json() for c in found])
    return found
