"""`kssm verify`: measure the apparatus, before a run, after it, or before a claim."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kssm_mlx.cli.arguments import complete_check, complete_recipe
from kssm_mlx.errors import ConfigError


def verify(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="A recipe, a run folder or weights; or several run folders.", autocompletion=complete_recipe
        ),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="C1,C7", help="Run these checks only.")] = None,
    level: Annotated[
        str | None,
        typer.Option(
            help="P: before step 1; S: after a run; R: during it; G: before a claim.  "
            "[default: P; of a run P, S and R; of several G]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:CALLABLE", help="A model of your own, alone or on a recipe.")
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Look for what was learned although nothing was.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(metavar="C20", help="Say what a check measures and why.", autocompletion=complete_check),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show also every number that was measured.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show one line, and what failed, warns or was waived.")
    ] = False,
) -> None:
    """Check a recipe, a run and what it learned, a model, or the runs that a claim compares.

    Of several runs those that differ in their seed alone are one arm, and the arm of the first is the
    baseline. Exit code 0 if no check failed, 1 if one did, 2 for unusable input.
    """
    if explain:
        return _explain(explain)
    from kssm_mlx.cli.train import refuse_both

    refuse_both(quiet, verbose)
    from kssm_mlx.runner.verify import verify as run

    found = run(
        *(targets or ()),
        only=None if only is None else _ids(only),
        level=level,
        model=model,
        untrained=untrained,
    )
    checks = [c.to_json() for c in found]
    target = " ".join([*(targets or ()), *([model] if model else [])])
    if as_json:
        typer.echo(json.dumps(checks, indent=2))
    else:
        _show(checks, target, quiet=quiet, verbose=verbose)
    raise typer.Exit(0 if all(c["ok"] for c in checks) else 1)


def _ids(only: str) -> list[str]:
    """Raises: ConfigError where there is none."""
    ids = [id for id in only.split(",") if id.strip()]
    if not ids:
        raise ConfigError("--only takes ids of checks such as C1,C7, got none; leave it out to run all")
    return ids


def _show(checks: list[dict], target: str, *, quiet: bool, verbose: bool) -> None:
    from kssm_mlx.cli.tables import checks_table, console, show, show_fixes, show_suite, summary

    shown = console()
    if quiet:
        return show_suite(shown, checks, target)
    show(shown, checks_table(checks, target))
    shown.print(summary(checks))
    show_fixes(shown, checks)
    for check in checks if verbose else ():
        numbers = json.dumps(check["numbers"])
        shown.print(f"{check['id']}: {numbers}", markup=False, soft_wrap=True)


def _explain(check: str) -> None:
    from kssm_mlx.checks.catalog import find_entry

    entry = find_entry(check)
    typer.echo(f"{entry.id} {entry.title} (level {entry.level}; {entry.source})")
    for part, text in entry.explanation.items():
        typer.echo(f"{part}: {text}")
    if entry.cost:
        typer.echo(f"cost: {entry.cost}")
