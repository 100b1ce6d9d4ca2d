"""`kssm recipes`: what can be trained right away."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    failures: Annotated[
        bool, typer.Option("--failures", help="The failed runs of the notes, each with what stops it.")
    ] = False,
) -> None:
    """List what can be trained right away.

    Each recipe with its question, how long it takes where, and the number it should reach. With --failures
    those that a check stops, to see it do so: kssm train failures/NAME ends with exit code 1.
    """
    from kssm_mlx.cli.tables import console, table
    from kssm_mlx.training.recipe import load, shipped

    if failures:
        _failures()
        return
    rows = []
    for name in shipped():
        about = load(name).about
        minutes = f"{about.minutes:g}" if about.minutes is not None else "unknown"
        goal = about.expected
        expected = f"{goal.metric} {goal.value:g} ± {goal.tolerance:g}" if goal else "not stated"
        rows.append((name, about.question, minutes, about.hardware, expected))
    console().print(table(("recipe", "question", "minutes", "on", "expected"), rows, "kssm train RECIPE"))
    typer.echo("Anything in a recipe can be changed: kssm train default --set train.steps=200")


def _failures() -> None:
    """The failed runs of the notes, and the checks that stop them."""
    from kssm_mlx.checks.catalog import definitions
    from kssm_mlx.cli.tables import console, table
    from kssm_mlx.training.recipe import failures, load

    known, rows = definitions(), []
    for name in failures():
        recipe = load(name)
        if recipe.failure:
            stops = "\n".join(f"{id} {known[id].title}" for id in recipe.failure.stopped_by)
            rows.append((name, recipe.about.question, stops))
    console().print(table(("failed run", "question", "stopped by"), rows, "kssm train FAILED_RUN"))
