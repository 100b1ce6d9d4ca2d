"""`kssm bench`: speed, memory and accuracy beside the peers, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def bench(
    out: Annotated[Path, typer.Option(help="Folder for <device>.json, .md and pictures.")] = Path(
        "benchmark"
    ),
    only: Annotated[
        str | None, typer.Option(help="Cases whose name contains this, such as mamba/train or ops.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Longer sequences, up to 65,536; takes hours.")
    ] = False,
    turns: Annotated[int, typer.Option(min=5, help="Turns per case, at most.")] = 7,
    names: Annotated[bool, typer.Option("--names", help="List the cases and stop.")] = False,
) -> None:
    """Measure ours beside mlx-lm, transformers and NumPy, as far as they are installed."""
    from kssm_mlx.bench.run import bench as run
    from kssm_mlx.bench.suite import cases, sizes
    from kssm_mlx.cli.tables import console

    chosen = [case for case in cases(sizes(full)) if only is None or only in case.key]
    if names:
        typer.echo("\n".join(case.key for case in chosen))
        return
    screen = console()
    path = run(chosen, out, turns=turns, show=lambda record: screen.print(_table(record)))
    screen.print(f"written: {path} and {path.with_suffix('.md')}", markup=False, soft_wrap=True)


def _table(record: dict[str, Any]):
    from kssm_mlx.bench.report import HEADER, rows
    from kssm_mlx.cli.tables import table

    return table(HEADER, rows(record), f"{record['key']}  {record['title']}")
