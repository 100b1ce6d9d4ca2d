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

    Several runs also get one picture of their validation curves and one table.
    """
    from kssm_mlx.reports import compare
    from kssm_mlx.reports import report as write

    written = [path for run in runs for path in write(run)]
    if len(runs) > 1:
        written += compare(runs, out)
    for path in written:
        typer.echo(path)
