"""`kssm report`: pictures and words from run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="One run folder, or several to compare.")],
    out: Annotated[Path, typer.Option(help="Where the comparison of several runs goes.")] = Path(
        "comparison"
    ),
) -> None:
    """Draw runs and write their cards.

    Several runs also get one picture of their validation curves and one table, and it is said how they
    compare with the first and what that rests on; runs that differ in train.seed only are one arm.
    """
    from kssm_mlx.reports import claims, compare
    from kssm_mlx.reports import report as write

    written = [path for run in runs for path in write(run)]
    if len(runs) > 1:
        written += compare(runs, out)
    for path in written:
        typer.echo(path)
    for sentence in claims(runs) if len(runs) > 1 else ():
        typer.echo(sentence)
