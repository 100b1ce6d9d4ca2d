"""What a verdict rests on: an untrained model, one run, or several seeds of the arms that are compared."""

from __future__ import annotations

import json

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.training.recipe import WORDS


def arms(runs: list[Context]) -> dict[str, list[Context]]:
    """Runs that differ in train.seed and in words only, together; by the folder of the first one."""
    grouped: dict[str, list[Context]] = {}
    for run in runs:
        grouped.setdefault(_question(run), []).append(run)
    return {str(group[0].run_folder): group for group in grouped.values()}


def _question(run: Context) -> str:
    table = run.recipe.model_dump(exclude={**dict.fromkeys(WORDS, True), "train": {"seed"}})
    return json.dumps(table, sort_keys=True)


def level(ctx: Context) -> str:
    """The evidence in words: "untrained", "1 run" or, of the arm that has the fewest, "3 seeds"; and the
    check's caveats. "" where there is no model.
    """
    return ", ".join(dict.fromkeys([_of(ctx), *ctx.caveats]))


def _of(ctx: Context) -> str:
    if ctx.runs:
        compared = arms([*ctx.runs, *(ctx.baseline or ())]).values()
        seeds = min(len({run.recipe.train.seed for run in arm}) for arm in compared)
        return "1 run" if seeds == 1 else f"{seeds} seeds"
    if ctx.model is None:
        return ""
    return "1 run" if ctx.trained else "untrained"
