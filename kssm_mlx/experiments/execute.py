"""Doing an experiment: a few processes at a time, each run resumable, results rewritten whenever one ends.

    design -> jobs -> parts/ARM/seed0.json, one per job that is done -> results.jsonl, of all parts in order

Whatever is killed, the next `run` begins with the parts that are there, resumes runs from their checkpoints,
and ends with the same results.jsonl.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kssm_mlx import files
from kssm_mlx.errors import CheckpointError, ConfigError, Interrupted
from kssm_mlx.experiments.decide import may_stop
from kssm_mlx.experiments.design import Design, parse_design
from kssm_mlx.experiments.job import Job
from kssm_mlx.experiments.schedule import (
    choose_settings,
    list_jobs,
    list_selections,
    read_part,
    require_runnable,
)
from kssm_mlx.files import explain_write_errors
from kssm_mlx.parsing import parse_json
from kssm_mlx.runs import lock
from kssm_mlx.runs.experiment import (
    PARTS,
    RESULTS,
    TIMING,
    Results,
    is_experiment,
    read_results,
    read_rows,
    write_rows,
)

TICK = 0.25  # seconds between two looks at the processes


class Watch(Protocol):
    """Hears what happens: `began` and `ended` of each job, `tick` a few times a second."""

    def planned(self, jobs: Sequence[Job]) -> None: ...
    def began(self, job: Job) -> None: ...
    def ended(self, job: Job, row: dict[str, Any] | None, seconds: float, why: str) -> None: ...
    def tick(self) -> None: ...


@dataclass
class Experiment:
    """An experiment's folder, its design as it is now, and what watches it."""

    folder: Path
    design: Design
    name: str
    text: str
    smoke: bool = False
    workers: int = 2
    command: Sequence[str] = (sys.executable, "-m", "kssm_mlx.experiments.worker")
    clock: Callable[[], datetime.datetime] = field(default=lambda: datetime.datetime.now(datetime.UTC))

    def run(self, watch: Watch, *, only: Sequence[str] = (), seeds: int | None = None) -> Results:
        """Do what is not done yet, and return all results.

        Raises: ConfigError for what cannot be run; CheckpointError for a folder that is in use or is another
            experiment's; Interrupted after a signal, with the runs saved.
        """
        variants = require_runnable(self.design, smoke=self.smoke)
        every = list_jobs(self.design, variants, smoke=self.smoke)
        asked = list_jobs(self.design, variants, only=only, seeds=seeds, smoke=self.smoke)
        with explain_write_errors("the experiment", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with lock.hold(self.folder), _stop_requests() as stopped:
            selections = list_selections(self.design, variants, smoke=self.smoke)
            # Before the design is noted: how many runs came before it is counted from the parts.
            self._restore_parts([*selections, *every])
            designs = self._note_design()
            watch.planned([*selections, *asked])
            self._work(selections, watch, stopped, lambda: self._write(designs, selections))
            chosen = choose_settings(self.design, variants, self._parts(selections))
            if self.design.select:
                asked = list_jobs(self.design, variants, chosen, only=only, seeds=seeds, smoke=self.smoke)
                every = list_jobs(self.design, variants, chosen, smoke=self.smoke)
            # Written before the first run too, so that `report` and `status` have a file from the beginning.
            results = self._write(designs, [*selections, *every])
            if self.design.select is None or chosen:
                self._work(asked, watch, stopped, lambda: self._write(designs, [*selections, *every]))
                results = self._write(designs, [*selections, *every])
        return results

    def _note_design(self) -> list[dict[str, Any]]:
        """The versions of the design, this one last.

        Raises: CheckpointError for the folder of another experiment.
        """
        designs = read_results(self.folder).designs if is_experiment(self.folder) else []
        if designs and designs[-1]["digest"] == self.design.digest:
            return designs
        if designs and designs[-1]["name"] != self.name:
            raise CheckpointError(
                f"{self.folder} holds experiment {designs[-1]['name']!r}, not {self.name!r}; "
                "choose another --out"
            )
        # Trained runs that somebody put there count too: the rule was not written down before them.
        trained = len(list((self.folder / "runs").glob("*/seed*/recipe.json")))
        done = max(trained, len(list((self.folder / "parts").glob("*/*.json"))))
        row = {
            "kind": "design",
            "name": self.name,
            "digest": self.design.digest,
            "fixed": self.clock().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "runs_before": done,
            "smoke": self.smoke,
            "design": self.design.model_dump(mode="json"),
            "file": self.text,
        }
        files.replace(self.folder / RESULTS, write_rows([*designs, row], []))
        return [*designs, row]

    def _restore_parts(self, jobs: Sequence[Job]) -> None:
        """The parts of a results.jsonl that was copied here without them, as out of a repository.

        Where there is a folder of parts, one that is missing was deleted, so that its run is done again.
        """
        if (self.folder / PARTS).exists() or not is_experiment(self.folder):
            return
        rows = read_rows(self.folder)
        if any(row["kind"] == "design" and row["name"] != self.name for row in rows):
            return  # another experiment, which is refused in a moment
        told = {(row["arm"], row["seed"]): row for row in rows if row["kind"] == "run"}
        for job in jobs:
            if row := told.get((job.arm, job.seed)):
                job.part(self.folder).parent.mkdir(parents=True, exist_ok=True)
                files.replace(job.part(self.folder), json.dumps(row, sort_keys=True) + "\n")

    def _parts(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        rows = {job.arm: read_part(job, self.folder) for job in jobs}
        return {arm: row for arm, row in rows.items() if row}

    def _write(self, designs: list[dict[str, Any]], jobs: Sequence[Job]) -> Results:
        """results.jsonl from all parts that are there, in the order of the design."""
        rows = [row for job in jobs if (row := read_part(job, self.folder))]
        files.replace(self.folder / RESULTS, write_rows(designs, rows))
        return read_results(self.folder)

    def _work(
        self, jobs: Sequence[Job], watch: Watch, stopped: Callable[[], int], write: Callable[[], Results]
    ) -> None:
        """Do the jobs that have no part yet, `workers` at a time, in their order."""
        waiting = [job for job in jobs if read_part(job, self.folder) is None]
        running: list[_Running] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.workers and self._may_begin(waiting[0], jobs, write):
                    running.append(_Running.start(waiting.pop(0), self))
                    watch.began(running[-1].job)
                if not running:  # what waits may not begin: the budget is spent, or a look decided
                    return
                time.sleep(TICK)
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    self._end(one, watch)
                    write()
                watch.tick()
                if signum := stopped():
                    raise Interrupted(
                        f"stopped by {signal.Signals(signum).name}; the runs are saved, "
                        "the same command goes on"
                    )
        finally:
            # A run that is asked to stop writes a checkpoint first, which a killed one would not.
            for one in running:
                one.process.send_signal(signal.SIGINT)
            for one in running:
                one.process.wait()

    def _may_begin(self, job: Job, jobs: Sequence[Job], write: Callable[[], Results]) -> bool:
        """Not beyond the budget, nor past a planned look that decided everything."""
        # Time by the clock: what the runs took together, shared out among those at work at a time.
        budget = self.design.stop.minutes
        if budget is not None and spent_seconds(self.folder) / self.workers > budget * 60:
            return False
        # The jobs before this one in time: those of earlier seeds.
        before = [j for j in jobs if j.purpose == "run" and self._index(j.seed) < self._index(job.seed)]
        if job.purpose == "run" and self._index(job.seed) in self.design.stop.looks:
            if any(read_part(j, self.folder) is None for j in before):
                return False  # the look waits for the runs that it looks at
            # A process may have left its part and not have been seen to end: then the file lacks its row.
            return not may_stop(self.design, write(), self._index(job.seed))
        return True

    def _index(self, seed: int) -> int:
        return self.design.run.seeds.index(seed)

    def _end(self, one: _Running, watch: Watch) -> None:
        seconds, row = time.monotonic() - one.began, read_part(one.job, self.folder)
        note = {"arm": one.job.arm, "seed": one.job.seed, "seconds": round(seconds, 1), "code": one.code}
        with open(self.folder / TIMING, "a") as timing:
            timing.write(json.dumps(note) + "\n")
        watch.ended(one.job, row, seconds, "" if row else one.last_words())


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    log: Path
    began: float

    @classmethod
    def start(cls, job: Job, experiment: Experiment) -> _Running:
        """A process of its own session, so that Ctrl-C reaches it once and through us."""
        folder = experiment.folder
        log = job.run_folder(folder).with_name(f"{job.run_folder(folder).name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        # Two workers with a thread per core each would fight over the cores.
        threads = max(1, (os.cpu_count() or 1) // experiment.workers)
        # Appended: what was said before a run was cut off says why it begins again.
        with open(log, "ab") as out:
            process = subprocess.Popen(
                [*experiment.command, str(folder)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={"KSSM_THREADS": str(threads), **os.environ},
            )
        assert process.stdin
        process.stdin.write(json.dumps(job.to_json()).encode())
        process.stdin.close()
        return cls(job, process, log, time.monotonic())

    @property
    def code(self) -> int:
        return self.process.returncode

    def last_words(self) -> str:
        """Why it ended without a result: the last line of its log that says so, and how it ended."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        said = next(
            (line for line in reversed(lines) if line.startswith("kssm: ")), lines[-1] if lines else ""
        )
        how = f"signal {-self.code}" if self.code < 0 else f"code {self.code}"
        return f"it ended with {how}: {said.removeprefix('kssm: ')}; all it said is in {self.log}"


def spent_seconds(folder: Path) -> float:
    """What the runs of an experiment took so far, all sessions together."""
    total = 0.0
    if (folder / TIMING).is_file():
        for line in (folder / TIMING).read_text(errors="replace").splitlines():
            try:
                total += float(parse_json(line)["seconds"])
            except (ValueError, KeyError, TypeError):  # a line that a crash cut
                continue
    return total


def design_of(results: Results) -> Design:
    """The design as it was last, from the results alone. Raises: ConfigError where it cannot be read."""
    table = results.designs[-1].get("design")
    if not isinstance(table, dict):
        raise ConfigError("the results hold no design; they were not written by kssm experiment")
    return parse_design(table, where=results.designs[-1]["name"])


@contextmanager
def _stop_requests() -> Iterator[Callable[[], int]]:
    """SIGINT and SIGTERM as a question: the number of the signal that came, 0 before."""
    came = [0]

    def note(signum: int, frame: Any) -> None:
        came[0] = signum

    old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came[0]
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
