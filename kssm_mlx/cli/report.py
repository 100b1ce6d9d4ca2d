"""`kssm report`: pictures and words from run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kssm_mlx.errors import ConfigError


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="One run folder, several to compare, or an experiment's folder.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the comparison of several runs goes.  [default: comparison]")
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Also one page, report.html, to explore without a network.")
    ] = False,
) -> None:
    """Draw runs and write their cards.

    Several runs also get one picture of their validation curves and one table, and it is said how they
    compare with the first and what that rests on; runs that differ in train.seed only are one arm.
    """
    from kssm_mlx.runs.experiment import is_experiment

    if len(runs) == 1 and is_experiment(runs[0]):
        from kssm_mlx.cli.experiments.experiment import report as report_experiment

        return report_experiment(runs[0], out)
    if out and len(runs) < 2:
        raise ConfigError(
            f"--out is for the comparison of several runs; the report of one is written into {runs[0]}"
        )
    from kssm_mlx.reports import compare, state_claims, write_html
    from kssm_mlx.reports import report as write
    from kssm_mlx.reports.run import open_runs

    open_runs(runs)  # what cannot be compared is refused before anything is written

    if html:
        from kssm_mlx.reports.page import require_plotly

        require_plotly()
    written = [path for run in runs for path in write(run)]
    if len(runs) > 1:
        written += compare(runs, out or Path("comparison"))
    if html:
        written.append(write_html(runs, runs[0] if len(runs) == 1 else out or Path("comparison")))
    for path in written:
        typer.echo(path)
    for sentence in state_claims(runs) if len(runs) > 1 else ():
        typer.echo(sentence)
