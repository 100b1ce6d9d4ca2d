"""What a run that may still be going on says of itself: read from its files again and again, changing none.

A file may be absent, half written, cut by a kill, or replaced by a run that resumed. What cannot be read is
left out, and damage that lasts is a warning.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

from kssm_mlx.errors import KssmError
from kssm_mlx.parsing import parse_json
from kssm_mlx.runs import lock
from kssm_mlx.runs.layout import METRICS, RECIPE, SAMPLES, is_run
from kssm_mlx.runs.records import read_checks, read_recipe

RUNGS = ("uniform", "unigram", "bigram", "trigram")
DEEPEST = 4  # folders below the one named in which runs are looked for: an experiment has two
LATEST = 50  # steps whose speed counts
FRESH = 300  # seconds without a sign, after which a run of another machine counts as stopped
Row = dict[str, Any]


@dataclass(frozen=True)
class Glance:
    """A run at one moment.

    steps: how many it is to have, None while unknown. train, evaluation: the latest row of each kind, {}
    before the first. losses: of every training row so far, nats/token. warnings: failed checks, warnings and
    files that cannot be read. age: seconds since something was written. held: whether its process lives; of
    another machine's, whether it gave a sign lately. step_seconds: the median of the latest steps, None while
    unknown.
    """

    folder: Path
    steps: int | None
    train: Row
    evaluation: Row
    losses: list[float]
    ladder: dict[str, float]
    sample: Row
    event: str
    warnings: list[str]
    age: float
    held: bool
    step_seconds: float | None

    @property
    def step(self) -> int:
        return int(self.train.get("step", 0))

    @property
    def status(self) -> str:
        """One of "begins", "running", "done", "stopped"."""
        if self.steps is not None and self.step >= self.steps:
            return "done"
        if self.held:
            return "running" if self.step else "begins"
        return "stopped"

    @property
    def seconds_left(self) -> float | None:
        """By the speed of the latest steps; None where it is not known."""
        if self.steps is None or self.step_seconds is None:
            return None
        return max(0, self.steps - self.step) * self.step_seconds

    @property
    def loss(self) -> float | None:
        """Of the latest evaluation, else of the latest step, nats/token."""
        found = [self.evaluation.get("nats_per_token"), self.train.get("loss")]
        return next((value for value in found if _is_number(value)), None)

    @property
    def rung(self) -> str:
        """The best rung of the ladder that the loss is below; "" for none or where it is not known."""
        loss = self.loss
        passed = [name for name in self.ladder if loss is not None and loss < self.ladder[name]]
        return passed[-1] if passed else ""

    def mean(self, quantity: str) -> float | None:
        """R, U and the like: of the whole model where it is logged so, else the mean over blocks."""
        whole = self.train.get(quantity)
        blocks = [v for name, v in self.train.items() if name.startswith(f"{quantity}_block")]
        known = [v for v in ([whole] if _is_number(whole) else blocks) if _is_number(v)]
        return sum(known) / len(known) if known else None


@dataclass
class Lines:
    """The rows of a JSON lines file, of which only what is new is read each time."""

    path: Path
    place: tuple[int, int] = (0, 0)  # inode and offset
    rows: list[Row] = field(default_factory=list)
    broken: int = 0

    def read(self) -> list[Row]:
        """All rows so far. A last line without its end waits until it is whole."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                inode, offset = self.place
                if inode != status.st_ino or status.st_size < offset:  # a run that resumed wrote it anew
                    self.rows, self.broken, offset = [], 0, 0
                file.seek(offset)
                new = file.read()
        except OSError:
            return self.rows
        whole = new.rfind(b"\n") + 1
        self.place = status.st_ino, offset + whole
        for line in new[:whole].splitlines():
            self._add(line)
        return self.rows

    def _add(self, line: bytes) -> None:
        try:
            row = parse_json(line.decode("utf-8", "replace"))
        except ValueError:
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int:
            self.rows.append(row)
        else:
            self.broken += 1


class Watched:
    """A run that is looked at again and again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.metrics, self.samples = Lines(folder / METRICS), Lines(folder / SAMPLES)

    def look(self) -> Glance:
        rows, samples = self.metrics.read(), self.samples.read()
        warnings = [
            f"{lines.path.name}: {lines.broken} lines cannot be read"
            for lines in (self.metrics, self.samples)
            if lines.broken
        ]
        train = [row for row in rows if row.get("kind") == "train"]
        ladder, said = _read_verdicts(self.folder)
        age = _seconds_since_write(self.folder)
        return Glance(
            folder=self.folder,
            steps=_read_steps(self.folder),
            train=_last_row(train),
            evaluation=_last_row([row for row in rows if row.get("kind") == "eval"]),
            losses=[row["loss"] for row in train if _is_number(row.get("loss"))],
            ladder=ladder,
            sample=_last_row([row for row in samples if isinstance(row.get("text"), str)]),
            event=str(_last_row([row for row in rows if row.get("kind") == "event"]).get("message", "")),
            warnings=[*said, *warnings],
            age=age,
            held=lock.is_held(self.folder) or (lock.is_elsewhere(self.folder) and age < FRESH),
            step_seconds=_median_seconds(train[-LATEST:]),
        )


def find_runs(path: Path) -> list[Path]:
    """The run that `path` is, or every run below it, `DEEPEST` folders down, in order of name."""
    if is_run(path):
        return [path]
    patterns = ["/".join(["*"] * depth + [RECIPE]) for depth in range(1, DEEPEST + 1)]
    return sorted(file.parent for pattern in patterns for file in path.glob(pattern))


def _read_steps(folder: Path) -> int | None:
    try:
        steps = read_recipe(folder).get("train", {}).get("steps")
    except KssmError:  # being written just now
        return None
    return steps if type(steps) is int else None


def _read_verdicts(folder: Path) -> tuple[dict[str, float], list[str]]:
    """The ladder, from the highest loss down, and what failed or warns at the latest stage that asked."""
    try:
        checks = [check for stage in read_checks(folder).values() for check in stage]
    except KssmError as e:
        return {}, [str(e)]
    latest = {check["id"]: check for check in checks}
    ladders = [check["numbers"]["ladder"] for check in checks if "ladder" in check["numbers"]]
    ladder = ladders[-1] if ladders else {}
    bad = [check for check in latest.values() if check["verdict"] in ("fail", "warn")]
    told = [f"{c['verdict']} {c['id']} {c['title']}: {c['got']}; expected {c['expected']}" for c in bad]
    return {rung: ladder[rung] for rung in RUNGS if _is_number(ladder.get(rung))}, told


def _median_seconds(rows: list[Row]) -> float | None:
    """Of a step: one that compiled, or waited for an evaluation or another process, does not count."""
    measured = [(row.get("tokens"), row.get("tokens_per_second")) for row in rows]
    seconds = [n / speed for n, speed in measured if _is_number(n) and _is_number(speed) and speed > 0]
    return median(seconds) if seconds else None


def _seconds_since_write(folder: Path) -> float:
    """Seconds since a file of the run was written."""
    times = []
    for name in (METRICS, SAMPLES, RECIPE):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(0.0, time.time() - max(times, default=time.time()))


def _last_row(rows: list[Row]) -> Row:
    return rows[-1] if rows else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
