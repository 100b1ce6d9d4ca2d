"""`kssm verify`: measure the apparatus, before a run or after it."""

from __future__ import annotations

from typing import Annotated

import typer

from kssm_mlx.errors import ConfigError


def verify(
    target: Annotated[str | None, typer.Argument(help="A recipe or a run folder.")] = None,
    only: Annotated[str | None, typer.Option(metavar="C1,C7", help="Run these checks only.")] = None,
    level: Annotated[
        str | None,
        typer.Option(help="P: before step 1; S: after the run.  [default: what the target allows]"),
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="C20", help="Say what a check measures and why.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Check a recipe, or a run and what it learned.

    Exit code 0 if every check passed or was waived, 1 if one failed, 2 for unusable input.
    """
    if explain:
        return _explain(explain)
    if target is None:
        raise ConfigError("kssm verify needs a recipe or a run folder (or --explain with the id of a check)")
    from kssm_mlx.experiments.run import verify as run

    checks = [c.to_json() for c in run(target, only=only.split(",") if only else None, level=level)]
    _show(checks, target, as_json)
    raise typer.Exit(0 if all(c["ok"] for c in checks) else 1)


def _show(checks: list[dict], target: str, as_json: bool) -> None:
    if as_json:
        import json

        return typer.echo(json.dumps(checks, indent=2))
    from kssm_mlx.cli.tables import checks_table, console, show_fixes

    shown = console()
    shown.print(checks_table(checks, target))
    show_fixes(shown, checks)


def _explain(check: str) -> None:
    from kssm_mlx.checks.definitions import definition

    entry = definition(check)
    typer.echo(f"{entry.id} {entry.title} (level {entry.level}; {entry.source})")
    for part, text in entry.explanation.items():
        typer.echo(f"{part}: {text}")
