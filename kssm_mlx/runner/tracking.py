"""Rows of a run sent to trackio as they are written, for a dashboard beside metrics.jsonl.

trackio keeps its data on this machine and speaks wandb's dialect; it comes with `kssm-mlx[track]`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kssm_mlx.errors import ConfigError
from kssm_mlx.training.recipe import Recipe


def require_tracker(project: str | None) -> None:
    """Before anything is prepared: is there what rows are sent with? Raises: ConfigError if not."""
    if project and not _is_installed("trackio"):
        raise ConfigError("--track needs trackio; install it: pip install 'kssm-mlx[track]'")


def _is_installed(package: str) -> bool:
    if package in sys.modules:  # None there says that it cannot be imported
        return sys.modules[package] is not None
    return find_spec(package) is not None


@contextlib.contextmanager
def open_tracker(project: str | None, folder: Path, recipe: Recipe, *, resume: bool = False) -> Iterator[Any]:
    """A function `log(step, row)` that sends the numbers of a row; does nothing without a project.

    Raises: ConfigError when trackio is not installed.
    """
    if not project:
        yield lambda step, row: None
        return
    require_tracker(project)
    trackio = import_module("trackio")  # an optional package

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
