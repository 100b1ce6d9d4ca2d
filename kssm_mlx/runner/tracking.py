"""Rows of a run sent to a dashboard as they are written, beside metrics.jsonl: trackio, or wandb by its name.

Each comes with an extra. trackio keeps its data on this machine and speaks wandb's dialect. The last step
that was sent is noted in the run folder: a run that goes on sends what is missing, also what was trained
without --track in between, and nothing twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kssm_mlx import files
from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.parsing import parse_json
from kssm_mlx.runs.layout import METRICS
from kssm_mlx.runs.records import read_metrics
from kssm_mlx.training.recipe import Recipe

TRACKERS = {"trackio": "track", "wandb": "wandb"}  # package -> extra
SENT = "tracking.json"
NOTED = 100  # rows between two notes; after a kill at most so many are sent twice

Log = Callable[[int, dict[str, Any]], None]


def require_tracker(track: str | None) -> None:
    """Before anything is prepared: is there what rows are sent with?

    track: PROJECT, or wandb:PROJECT. Raises: ConfigError if not.
    """
    if not track:
        return
    package, _ = _parts(track)
    if not _is_installed(package):
        raise ConfigError(f"--track needs {package}; install it: pip install 'kssm-mlx[{TRACKERS[package]}]'")


def _parts(track: str) -> tuple[str, str]:
    """Package and project."""
    package, colon, project = track.rpartition(":")
    package = package if colon else "trackio"
    if package not in TRACKERS or not project:
        raise ConfigError(
            "--track takes PROJECT, trackio:PROJECT or wandb:PROJECT, got "
            f"{track!r}{nearest(package, TRACKERS)}"
        )
    return package, project


def _is_installed(package: str) -> bool:
    if package in sys.modules:  # None there says that it cannot be imported
        return sys.modules[package] is not None
    return find_spec(package) is not None


@contextlib.contextmanager
def open_tracker(track: str | None, folder: Path, recipe: Recipe, *, resume: bool = False) -> Iterator[Log]:
    """A function `log(step, row)` that sends the numbers of a row; does nothing without a project.

    Raises: ConfigError when the package is not installed.
    """
    if not track:
        yield lambda step, row: None
        return
    require_tracker(track)
    package, project = _parts(track)
    sent = _read_note(folder).get(f"{package}:{project}", 0) if resume else 0
    tracker = import_module("wandb") if package == "wandb" else import_module("trackio")  # optional packages
    run = tracker.init(
        project=project,
        name=folder.resolve().name,
        config=recipe.model_dump(),
        resume="allow" if resume else "never",
        **({"id": _id_of(folder)} if package == "wandb" else {}),
    )
    sender = _Sender(run, folder, f"{package}:{project}", sent)
    try:
        for row in read_metrics(folder) if resume and (folder / METRICS).is_file() else ():
            if row.get("kind") in ("train", "eval"):
                sender.log(row["step"], row)
        yield sender.log
    finally:
        sender.note()
        run.finish()


class _Sender:
    """Sends the rows of steps that were not sent before, of which a step can have two."""

    def __init__(self, run: Any, folder: Path, key: str, sent: int):
        self._run, self._folder, self._key = run, folder, key
        self._before, self.last, self._rows = sent, sent, 0

    def log(self, step: int, row: dict[str, Any]) -> None:
        if step <= self._before:
            return
        self._run.log(_numbers(row), step=step)
        self.last, self._rows = step, self._rows + 1
        if self._rows % NOTED == 0:
            self.note()

    def note(self) -> None:
        if self._folder.is_dir():
            known = {**_read_note(self._folder), self._key: self.last}
            files.replace(self._folder / SENT, json.dumps(known) + "\n")


def _read_note(folder: Path) -> dict[str, int]:
    """Package and project -> the last step that was sent; a note that cannot be read counts as none."""
    try:
        known = parse_json((folder / SENT).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, int)} if isinstance(known, dict) else {}


def _id_of(folder: Path) -> str:
    """By which wandb knows a run again: of its place, since a name may be given twice."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """What can be drawn, as "train/loss", "eval/bits_per_byte" and so on."""
    return {
        f"{row['kind']}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and name != "step"
    }
