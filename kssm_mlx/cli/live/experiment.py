"""What a person sees of an experiment: on a terminal a live table, elsewhere a line a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from kssm_mlx.cli.tables import show, table
from kssm_mlx.experiments.design import Design
from kssm_mlx.experiments.execute import spent_seconds
from kssm_mlx.experiments.job import Job
from kssm_mlx.runs.experiment import read_results
from kssm_mlx.runs.layout import METRICS

TAIL = 4096  # bytes of a metrics.jsonl, enough for its last rows


class Watcher:
    """The state of every job, and how it is shown."""

    def __init__(self, screen: Console, design: Design, folder: Path):
        self.screen, self.design, self.folder = screen, design, folder
        self.jobs: list[Job] = []
        self.said: dict[tuple[str, int], str] = {}
        self.running: dict[tuple[str, int], float] = {}
        self.seconds: list[float] = []
        self.live: Live | None = None

    def planned(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        for job in jobs:
            if job.part(self.folder).exists():
                self.said[job.arm, job.seed] = "done"
        done = len(self.said)
        if self.design.about.question:
            self.screen.print(self.design.about.question, soft_wrap=True, markup=False)
        if not self.live:
            self.screen.print(f"{len(jobs)} runs, {done} of them done", soft_wrap=True)

    def began(self, job: Job) -> None:
        self.running[job.arm, job.seed] = time.monotonic()
        if not self.live:
            self.screen.print(f"{job.arm}, seed {job.seed}: begins", soft_wrap=True, markup=False)

    def ended(self, job: Job, row: dict[str, Any] | None, seconds: float, why: str) -> None:
        self.running.pop((job.arm, job.seed), None)
        self.seconds.append(seconds)
        text = describe_row(self.design, row) if row else why
        self.said[job.arm, job.seed] = text
        # What went wrong is told for good; a cell of the table has 40 characters.
        if not self.live or row is None or row["failed"]:
            self.screen.print(f"{job.arm}, seed {job.seed}: {text}", soft_wrap=True, markup=False)

    def tick(self) -> None:
        if self.live:
            self.live.update(self._table())

    def _table(self) -> Table:
        seeds = list(dict.fromkeys(job.seed for job in self.jobs))
        arms = list(dict.fromkeys(job.arm for job in self.jobs))
        asked = {(job.arm, job.seed): job for job in self.jobs}
        rows = [(arm, *(self._cell(asked.get((arm, seed))) for seed in seeds)) for arm in arms]
        return table(("arm", *(f"seed {seed}" for seed in seeds)), rows, self._title())

    def _title(self) -> str:
        done, all_ = len(self.said), len(self.jobs)
        cost = f"cost {_minutes(spent_seconds(self.folder))}"
        if not self.seconds:
            return f"{done} of {all_} runs, {cost}"
        # Of this session: earlier ones may have had another machine, or the whole of it.
        left = (all_ - done) * sum(self.seconds) / len(self.seconds) / max(1, len(self.running))
        return f"{done} of {all_} runs, {cost}, about {_minutes(left)} left"

    def _cell(self, job: Job | None) -> str:
        if job is None:
            return ""
        if (job.arm, job.seed) in self.running:
            return describe_progress(job.run_folder(self.folder), job.recipe.train.steps)
        return self.said.get((job.arm, job.seed), "")[:40]


@contextmanager
def watch_experiment(screen: Console, design: Design, folder: Path) -> Iterator[Watcher]:
    """A watcher for one session of an experiment."""
    watcher = Watcher(screen, design, folder)
    # A table that is redrawn is noise in a file.
    live = Live(console=screen, refresh_per_second=4, transient=True) if screen.is_terminal else None
    with live or nullcontext():
        watcher.live = live
        yield watcher


def show_status(screen: Console, folder: Path) -> None:
    """Every arm and seed: its number, why it has none, or how far it is."""
    from kssm_mlx.experiments.execute import design_of
    from kssm_mlx.experiments.job import safe_name

    results = read_results(folder)
    design = design_of(results)
    done = {(run.arm, run.seed): run for run in results.runs}
    arms = list(dict.fromkeys([*_planned_arms(design), *(run.arm for run in results.runs)]))
    seeds = list(dict.fromkeys([*design.run.seeds, *(run.seed for run in results.runs)]))

    def cell(arm: str, seed: int) -> str:
        if run := done.get((arm, seed)):
            return describe_row(design, {"failed": run.failed, "metrics": run.metrics})
        at = folder / "runs" / safe_name(arm) / f"seed{seed}"
        return describe_progress(at, None) if at.is_dir() else "waiting" if seed in design.run.seeds else ""

    rows = [(arm, *(cell(arm, seed) for seed in seeds)) for arm in arms]
    title = f"{results.designs[-1]['name']}, cost {_minutes(spent_seconds(folder))}"
    show(screen, table(("arm", *(f"seed {seed}" for seed in seeds)), rows, title))


def _planned_arms(design: Design) -> list[str]:
    from kssm_mlx.experiments.arms import list_variants

    return [variant.name for variant in list_variants(design)]


def describe_row(design: Design, row: dict[str, Any]) -> str:
    """The number of a run that ended, or what stopped it."""
    if row["failed"]:
        return f"stopped by its checks: {row['failed']}"
    value = row["metrics"].get(design.metric.name)
    return "done" if value is None else f"{value:.4g}"


def describe_progress(run: Path, steps: int | None) -> str:
    """How far a run is, by the last whole row of its metrics.jsonl."""
    from kssm_mlx.parsing import parse_json

    try:
        with open(run / METRICS, "rb") as file:
            file.seek(0, 2)
            # The end alone: a long run has megabytes of rows, and this is asked four times a second.
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "begins"
    for line in reversed(lines):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "loss" in row:
            return f"{row['step']}{f'/{steps}' if steps else ''}, loss {row['loss']:.3f}"
    return "begins"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
