"""`kssm recipes`: what can be trained right away. `kssm config`: one of them in full."""

from __future__ import annotations

from textwrap import fill
from typing import Annotated, Any

import typer

from kssm_mlx.cli.arguments import Overrides, complete_recipe

WHOLE = "\u00a0±\u00a0"  # a number and its error stay on one line
INDENT: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "    "}


def recipes(
    failures: Annotated[
        bool, typer.Option("--failures", help="Published runs that failed, each with what stops it.")
    ] = False,
) -> None:
    """List what can be trained right away.

    Each recipe with its question, how long it takes where, and the number it should reach. With --failures
    those that a check stops, to see it do so: kssm train failures/NAME ends with exit code 1.
    """
    from kssm_mlx.cli.tables import console
    from kssm_mlx.training.recipe import list_shipped, load

    if failures:
        _failures()
        return
    screen = console()
    for name in list_shipped():
        about = load(name).about
        cost = _cost(about).replace(" ± ", WHOLE)
        heading = fill(f"{name}  {cost}", screen.width, subsequent_indent="    ")
        screen.print(heading.replace(WHOLE, " ± "), style="bold", markup=False, soft_wrap=True)
        lines = fill(about.question or "no question stated", min(screen.width, 80), **INDENT)
        screen.print(lines, markup=False, soft_wrap=True)
    typer.echo("kssm train RECIPE trains one; kssm train RECIPE --smoke tries all of it in a minute or so.")
    typer.echo("Anything in a recipe can be changed: kssm train default --set train.steps=200")


def config(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A shipped recipe (see kssm recipes), a TOML file, or a run folder.",
            autocompletion=complete_recipe,
        ),
    ],
    set_: Overrides = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe's [smoke] form.")] = False,
) -> None:
    """Print a recipe as TOML with every default filled in: a file that kssm train takes.

    What each key means: docs/reference/recipe.md.
    """
    import tomlkit

    from kssm_mlx.cli.run_choice import choose
    from kssm_mlx.runner.prepare import require_known_names
    from kssm_mlx.runs.layout import is_run
    from kssm_mlx.training.recipe import read_smoke

    choice = choose(recipe, None, set_ or [], smoke=smoke, resume=True)
    require_known_names(choice.recipe, choice.recipe.waive)
    table = choice.recipe.model_dump()
    if not is_run(choice.folder):
        table["smoke"] = read_smoke(recipe)
    sections = {name: part for name, part in _without_none(table).items() if part}
    typer.echo(tomlkit.dumps(sections), nl=False)


def _without_none(table: Any) -> Any:
    """TOML has no null: what is not set is not there, nor a section of nothing."""
    if isinstance(table, list | tuple):
        return [_without_none(part) for part in table]
    if not isinstance(table, dict):
        return table
    parts = {key: _without_none(value) for key, value in table.items() if value is not None}
    return {key: part for key, part in parts.items() if part != {}}


def _cost(about: Any) -> str:
    """How long where, and what comes out."""
    minutes = f"{about.minutes:g} min" if about.minutes is not None else "not timed"
    goal = about.expected
    expected = f", {goal.metric} {goal.value:g} ± {goal.tolerance:g}" if goal else ""
    return f"({minutes}{f' on {about.hardware}' if about.hardware else ''}{expected})"


def _failures() -> None:
    """Published runs that failed, and the checks that stop them."""
    from kssm_mlx.checks.catalog import list_entries
    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.training.recipe import list_failures, load

    known, rows = list_entries(), []
    for name in list_failures():
        recipe = load(name)
        if recipe.failure:
            stops = "\n".join(f"{id} {known[id].title}" for id in recipe.failure.stopped_by)
            rows.append((name, recipe.about.question, stops))
    show(console(), table(("failed run", "question", "stopped by"), rows, "kssm train FAILED_RUN"))
