"""`kssm eval`: how well a run predicts held-out text."""

from __future__ import annotations

from typing import Annotated

import typer


def evaluate(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Another text.  [default: the run's validation]")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=256, help="How many to score.  [default: the recipe's eval.tokens]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Score a run on held-out text.

    In nats/token, perplexity and bits/byte, with what context is worth and what counting reaches.
    """
    from kssm_mlx.experiments.evaluation import evaluate as score
    from kssm_mlx.experiments.run import load

    numbers = score(load(run), run, source=data, tokens=tokens)
    if as_json:
        import json

        from kssm_mlx.training.rows import plain

        return typer.echo(json.dumps({name: plain(value) for name, value in numbers.items()}, indent=2))
    from kssm_mlx.cli.tables import console, evaluation_rows, table

    console().print(table(("measure", "value"), evaluation_rows(numbers), numbers["data"]))
