"""What a verdict rests on: an untrained model, one run, or several seeds of the arms that are compared."""

from __future__ import annotations

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.runs.arms import group_by_arm


def group_contexts(runs: list[Context]) -> dict[str, list[Context]]:
    """The runs by arm, by the folder of the first of each."""
    groups = group_by_arm(runs, lambda run: run.recipe.model_dump())
    return {str(group[0].run_folder): group for group in groups}


def describe_evidence(ctx: Context) -> str:
    """The evidence in words: "untrained", "1 run" or, of the arm that has the fewest, "3 seeds"; and the
    check's caveats. "" where there is no model.
    """
    return ", ".join(dict.fromkeys([_describe_runs(ctx), *ctx.caveats]))


def _describe_runs(ctx: Context) -> str:
    if ctx.runs:
        compared = group_contexts([*ctx.runs, *(ctx.baseline or ())]).values()
        seeds = min(len({run.recipe.train.seed for run in arm}) for arm in compared)
        return "1 run" if seeds == 1 else f"{seeds} seeds"
    if ctx.model is None:
        return ""
    return "1 run" if ctx.trained else "untrained"
