"""A run folder as plain values: what every report reads, and all it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.runs.layout import MANIFEST, METRICS, PROBES, RECIPE, distinct_names, is_run
from kssm_mlx.runs.records import (
    read_checks,
    read_manifest,
    read_metrics,
    read_recipe,
    read_rows,
    read_samples,
)

RUNGS = ("uniform", "unigram", "bigram", "trigram")


@dataclass(frozen=True)
class Run:
    """One run folder. Only recipe.json and metrics.jsonl must be there; what else it lacks is empty.

    name: of its folder; rows: of metrics.jsonl; checks: stage -> verdicts; samples, probes: of their files.
    """

    folder: Path
    name: str
    recipe: dict[str, Any]
    manifest: dict[str, Any]
    rows: list[dict[str, Any]]
    checks: dict[str, list[dict[str, Any]]]
    samples: list[dict[str, Any]]
    probes: list[dict[str, Any]] = field(default_factory=list)

    def series(self, kind: str, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one column of the rows of one kind, without the rows that have no number."""
        found = [(r["step"], r[column]) for r in self.of(kind) if isinstance(r.get(column), int | float)]
        steps, values = zip(*found) if found else ((), ())
        return np.array(steps, dtype=float), np.array(values, dtype=float)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The rows of one kind: "train", "eval" or "event"."""
        return [row for row in self.rows if row.get("kind") == kind]

    def blocks(self, quantity: str) -> list[str]:
        """The columns of a quantity that is logged per block: ["R_block00", "R_block01"]."""
        columns = {c for row in self.rows for c in row if c.startswith(f"{quantity}_block")}
        return sorted(columns)

    @property
    def steps(self) -> int:
        """How many updates have a row."""
        return max((row["step"] for row in self.of("train")), default=0)

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest loss; of a run in phases, among those of the last."""
        last = self.evaluations[-1].get("phase") if self.evaluations else None
        found = [row for row in self.evaluations if row.get("phase") == last]
        return min(found, key=lambda row: row["nats_per_token"], default=None)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations that gave a finite number."""
        return [row for row in self.of("eval") if isinstance(row.get("nats_per_token"), int | float)]

    @property
    def ladder(self) -> dict[str, float]:
        """What counting predicts on the same validation text, nats/token, where a check measured it."""
        measured = self.measured("ladder") or {}
        return {rung: measured[rung] for rung in RUNGS if rung in measured}

    def measured(self, name: str) -> Any:
        """A number that some check has measured, of the latest stage; None where none has."""
        found = [c["numbers"][name] for stage in self.checks.values() for c in stage if name in c["numbers"]]
        return found[-1] if found else None


def open_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read several run folders, whose names tell them apart.

    Raises: as `open_run`; ConfigError for a folder that is given twice.
    """
    paths = [Path(folder) for folder in folders]
    names = distinct_names(paths)
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1:
            raise ConfigError(f"{path} is given twice; a run is compared with others")
    return [open_run(path, name) for path, name in zip(paths, names, strict=True)]


def open_run(folder: str | Path, name: str = "") -> Run:
    """Read a run folder. name: what reports call it, by default the name of the folder.

    Raises: CheckpointError if it is not one, or if a file in it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no run folder {folder}; kssm train makes one")
    if not is_run(folder):
        raise CheckpointError(f"{folder} is not a run folder: it has no {RECIPE}, which kssm train writes")
    if not (folder / METRICS).is_file():
        raise CheckpointError(f"{folder} has no {METRICS} yet: the run stopped before its first step")
    return Run(
        folder=folder,
        name=name or folder.resolve().name,
        recipe=read_recipe(folder),
        manifest=read_manifest(folder) if (folder / MANIFEST).is_file() else {},
        rows=read_metrics(folder),
        checks=read_checks(folder),
        samples=read_samples(folder),
        probes=read_rows(folder / PROBES),
    )
