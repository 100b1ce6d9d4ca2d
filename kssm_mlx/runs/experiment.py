"""What an experiment's folder is, and the rows of its results.jsonl, which are all that a verdict needs.

    EXPERIMENT/  results.jsonl  timing.jsonl  run.lock
                 runs/ARM/seed0/ (a run folder)  parts/ARM/seed0.json (its row, once it is done)
                 report.md  report.html  arms.png  lengths.png  differences.png

results.jsonl holds, in this order: one row of kind "design" for every version of the file, the first with
the time before the first run; then a row of kind "run" for each arm and seed, in the order in which they were
asked for. No row tells of clocks or of interruptions, so that an experiment which was killed and run again
gives the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kssm_mlx.errors import CheckpointError
from kssm_mlx.parsing import parse_json

RESULTS, TIMING, RUNS, PARTS = "results.jsonl", "timing.jsonl", "runs", "parts"


@dataclass(frozen=True)
class RunResult:
    """A row of kind "run". `failed`: why it has no numbers; "" where it has.

    purpose: "run", or "select" for one that chose settings. metrics: name -> value; units: name -> one value
    per independent unit of one run (windows, prompts); curve: [step, value] of the loss; probes: rows of
    probes.jsonl; checks: ids by verdict.
    """

    arm: str
    seed: int
    purpose: str = "run"
    failed: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    units: dict[str, list[float]] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    checks: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """designs: the versions of the file, each {"digest", "fixed", "name", "file", "runs_before"}."""

    designs: list[dict[str, Any]]
    runs: list[RunResult]

    @property
    def chosen(self) -> list[RunResult]:
        """The runs that count, those that chose settings aside."""
        return [run for run in self.runs if run.purpose == "run"]


def is_experiment(path: Path) -> bool:
    return (path / RESULTS).is_file() or (path.suffix == ".jsonl" and path.name == RESULTS and path.is_file())


def results_file(path: Path) -> Path:
    return path / RESULTS if path.is_dir() else path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows as they were written. Raises: CheckpointError naming the line at fault."""
    file = results_file(path)
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror.lower() if isinstance(e, OSError) and e.strerror else "it is not UTF-8"
        raise CheckpointError(f"cannot read {file}: {reason}") from None
    return [_read_row(file, number, line) for number, line in enumerate(lines, start=1)]


def read_results(path: Path) -> Results:
    """Of an experiment's folder, or of a results.jsonl. Raises: CheckpointError naming the line at fault."""
    file, designs, runs = results_file(path), [], []
    for number, row in enumerate(read_rows(path), start=1):
        if row["kind"] == "design":
            designs.append(row)
        else:
            runs.append(_run_of(file, number, row))
    if not designs:
        raise CheckpointError(f"{file} has no row of kind design; it is no results of an experiment")
    return Results(designs, runs)


def write_rows(designs: Iterable[dict[str, Any]], runs: Iterable[dict[str, Any]]) -> str:
    """The text of results.jsonl."""
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in (*designs, *runs))


def _read_row(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as e:
        raise CheckpointError(f"{file} line {number} is not JSON: {e}") from None
    if not isinstance(row, dict) or row.get("kind") not in ("design", "run"):
        raise CheckpointError(f'{file} line {number} is no row of kind "design" or "run"')
    wanted = {
        "design": {"digest": str, "fixed": str, "name": str, "file": str},
        "run": {"arm": str, "seed": int},
    }
    for name, kind in wanted[row["kind"]].items():
        if not isinstance(row.get(name), kind):
            raise CheckpointError(
                f"{file} line {number}: {name} should be a {kind.__name__}, got {row.get(name)!r}"
            )
    return row


def _run_of(file: Path, number: int, row: dict[str, Any]) -> RunResult:
    known = RunResult.__dataclass_fields__
    kept = {name: value for name, value in row.items() if name in known}
    for name in ("metrics", "units", "checks", "settings", "digests", "environment"):
        if not isinstance(kept.get(name, {}), dict):
            raise CheckpointError(f"{file} line {number}: {name} should be an object")
    numbers = kept.get("metrics", {}).values()
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise CheckpointError(f"{file} line {number}: a metric is no number")
    return RunResult(**kept)
