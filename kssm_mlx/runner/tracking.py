"""Rows of a run sent to trackio as they are written, for a dashboard beside metrics.jsonl.

trackio keeps its data on this machine and speaks wandb's dialect; it comes with `kssm-mlx[track]`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kssm_mlx.errors import ConfigError
from kssm_mlx.training.recipe import Recipe


@contextlib.contextmanager
def tracked(project: str | None, folder: Path, recipe: Recipe, *, resume: bool = False) -> Iterator[Any]:
    """A function `log(step, row)` that sends the numbers of a row; does nothing without a project.

    Raises: ConfigError when trackio is not installed.
    """
    if not project:
        yield lambda step, row: None
        return
    try:
        import trackio
    except ImportError:
        raise ConfigError("--track needs trackio; install it: pip install 'kssm-mlx[track]'") from None
    run = trackio.init(
        project=project,
        name=folder.resolve().name,
        config=recipe.model_dump(),
        resume="allow" if resume else "never",
    )
    try:
        yield lambda step, row: run.log(_numbers(row), step=step)
    finally:
        run.finish()


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """What can be drawn, as "train/loss", "eval/bits_per_byte" and so on."""
    return {
        f"{row['kind']}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and name != "step"
    }
