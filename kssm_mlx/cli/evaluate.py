"""`kssm eval`: how well a run or a model predicts a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run, a folder or a repository.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Another text.  [default: the run's validation, or English]"),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=256, help="How many to score.  [default: the recipe's eval.tokens, or 8192]"),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Tasks of lm-evaluation-harness (the extra eval) instead."),
    ] = None,
    task_files: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the tasks are: files of your own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task, at most.")] = None,
    verify: Annotated[bool, typer.Option(help="Refuse weights that fail their checks.")] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Score a run or a model on held-out text.

    In nats/token, perplexity and bits/byte, with what context is worth and what counting reaches.
    """
    from kssm_mlx.cli.tables import console, evaluation_rows, show, table, warn_unverified
    from kssm_mlx.runner.evaluate import evaluate as score
    from kssm_mlx.runner.load import load

    trained = load(model, verify=verify)
    warn_unverified(trained)
    if tasks:
        return _run_tasks(trained, [name.strip() for name in tasks.split(",")], task_files, limit, as_json)
    numbers = score(trained, model, source=data, tokens=tokens)
    if as_json:
        import json

        from kssm_mlx.training.json_lines import to_plain

        return typer.echo(json.dumps({name: to_plain(value) for name, value in numbers.items()}, indent=2))
    show(console(), table(("measure", "value"), evaluation_rows(numbers), numbers["data"]))


def _run_tasks(trained: Any, names: list[str], folder: Path | None, limit: int | None, as_json: bool) -> None:
    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.integrations.lm_eval import run_tasks

    found = run_tasks(trained, names, folder, limit)
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2))
        return
    rows = [(task, name, f"{value:.4f}") for task, row in found.items() for name, value in row.items()]
    show(console(), table(("task", "measure", "value"), rows, trained.source))
