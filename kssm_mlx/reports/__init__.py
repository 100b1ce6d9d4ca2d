"""Reports: pictures and a card from what a run folder holds, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kssm_mlx.errors import CheckpointError


def report(folder: str | Path) -> list[Path]:
    """Draw the pictures of one run and write its card; returns the paths, the card last.

    Raises: CheckpointError if it is not a run folder or cannot be written to.
    """
    from kssm_mlx.reports.card import write_card
    from kssm_mlx.reports.plots import plot_all
    from kssm_mlx.reports.run import open_run

    run = open_run(folder)
    try:
        pictures = plot_all(run)
        return [*pictures, write_card(run, pictures)]
    except OSError as e:
        raise CheckpointError(
            f"cannot write the report into {folder}: {(e.strerror or str(e)).lower()}"
        ) from None


def compare(folders: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Put several runs into one picture and one table in the folder `out`; returns their paths.

    Raises: as `open_runs`; CheckpointError if `out` cannot be written to.
    """
    from kssm_mlx.reports.comparison import write_comparison
    from kssm_mlx.reports.run import open_runs

    return write_comparison(open_runs(folders), Path(out))


def write_html(folders: Sequence[str | Path], out: str | Path) -> Path:
    """report.html of one run or of several side by side, in the folder `out`; returns its path."""
    from kssm_mlx.reports.run import open_runs
    from kssm_mlx.reports.run_page import write_run_page

    return write_run_page(open_runs(folders), Path(out))


def state_claims(folders: Sequence[str | Path]) -> list[str]:
    """What the runs allow one to say of each other, each sentence with its evidence."""
    from kssm_mlx.reports import claims
    from kssm_mlx.reports.run import open_runs

    return claims.state_claims(open_runs(folders))
