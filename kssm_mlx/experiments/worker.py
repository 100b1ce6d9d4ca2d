"""One job of an experiment in a process: `python -m kssm_mlx.experiments.worker FOLDER < job.json`.

It writes what was measured, or which checks stopped it, as one part of the results, and ends with 0; what
says nothing about the arm (no space, a signal, unusable input) ends with another code and leaves no part.
Its output goes to log.txt beside the run. It ends when the experiment that started it does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from kssm_mlx import files
from kssm_mlx.errors import CheckFailed, CheckpointError, KssmError
from kssm_mlx.experiments.job import Job, Measured
from kssm_mlx.experiments.protocols import find_protocol, parse_options
from kssm_mlx.runs import lock
from kssm_mlx.runs.layout import PROBES
from kssm_mlx.runs.records import read_checks, read_manifest, read_rows
from kssm_mlx.training.checkpoints.identity import describe_environment
from kssm_mlx.training.json_lines import to_plain

PATIENCE = 30.0  # seconds for which a worker of an experiment that was killed may still hold the run


def main(experiment: Path) -> int:
    job = Job.from_json(json.load(sys.stdin))
    _end_with_parent()
    _wait_for_run(job.run_folder(experiment))
    try:
        row = do_job(job, experiment, Console(highlight=False, width=120))
    except KssmError as e:
        print(f"kssm: {e}", file=sys.stderr, flush=True)
        return e.exit_code
    part = job.part(experiment)
    part.parent.mkdir(parents=True, exist_ok=True)
    files.replace(part, json.dumps(row, sort_keys=True) + "\n")
    return 0


def do_job(job: Job, experiment: Path, console: Console) -> dict[str, Any]:
    """The row of a job: its numbers, or the checks that stopped it."""
    folder, protocol = job.run_folder(experiment), find_protocol(job.protocol)
    try:
        measured, failed = protocol.run(job, folder, parse_options(protocol, job.options), console), ""
    except CheckFailed as e:
        measured, failed = Measured({}), " ".join(str(e).split())
        print(f"kssm: {failed}", file=sys.stderr, flush=True)
    return {
        "kind": "run",
        "arm": job.arm,
        "seed": job.seed,
        "purpose": job.purpose,
        "failed": failed,
        "metrics": {n: x for n, x in measured.metrics.items() if to_plain(x) is not None},
        # fp32 has seven digits; more would double the file and tell nothing.
        "units": {name: [float(f"{x:.7g}") for x in values] for name, values in measured.units.items()},
        "curve": measured.curve,
        "probes": read_rows(folder / PROBES),
        "checks": collect_checks(folder),
        "settings": job.settings,
        "protocol": job.measures,
        "digests": _digests(folder),
        "environment": describe_environment(),
    }


def collect_checks(folder: Path) -> dict[str, list[str]]:
    """The ids of the run's checks by their worst verdict."""
    order = ("pass", "not measurable", "warn", "waived", "fail")
    worst: dict[str, str] = {}
    for verdicts in read_checks(folder).values():
        for check in verdicts:
            known = worst.get(check["id"], "pass")
            worst[check["id"]] = max(known, check["verdict"], key=order.index)
    return {
        word: sorted(id for id, found in worst.items() if found == word) for word in sorted({*worst.values()})
    }


def _digests(folder: Path) -> dict[str, str]:
    """What the run began with: its parameters and its data."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return {}
    data = manifest.get("data", {})
    tokens = {f"{name}_tokens": split.get("digest", "") for name, split in data.get("splits", {}).items()}
    return {"initial": manifest.get("initial_digest", ""), **{k: v for k, v in tokens.items() if v}}


def _end_with_parent() -> None:
    """A worker without its experiment would train on unseen, and hold the run against whoever goes on."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        # At once: an orderly end would write a checkpoint into a folder that somebody else has taken over.
        os._exit(75)

    threading.Thread(target=watch, daemon=True).start()


def _wait_for_run(folder: Path) -> None:
    """Until a worker that is ending has let go of the run's lock."""
    end = time.monotonic() + PATIENCE
    while lock.is_held(folder) and time.monotonic() < end:
        time.sleep(0.2)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
