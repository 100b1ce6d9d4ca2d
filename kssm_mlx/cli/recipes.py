"""`kssm recipes`: what can be trained right away."""

from __future__ import annotations

import typer


def recipes() -> None:
    """List what can be trained right away.

    Each recipe with its question, how long it takes where, and the number it should reach.
    """
    from kssm_mlx.cli.tables import console, table
    from kssm_mlx.training.recipe import load, shipped

    rows = []
    for name in shipped():
        about = load(name).about
        minutes = f"{about.minutes:g}" if about.minutes is not None else "unknown"
        goal = about.expected
        expected = f"{goal.metric} {goal.value:g} ± {goal.tolerance:g}" if goal else "not stated"
        rows.append((name, about.question, minutes, about.hardware, expected))
    console().print(table(("recipe", "question", "minutes", "on", "expected"), rows, "kssm train RECIPE"))
    typer.echo("Anything in a recipe can be changed: kssm train default --set train.steps=200")
