"""Names of the files of a run, and which of its checkpoints is meant.

    runs/NAME/  recipe.json  manifest.json  data/  metrics.jsonl  samples.jsonl  checks.json  run.lock
                probes.jsonl (where eval.checks asks for it)
                checkpoints/step_00000200/  checkpoints/LATEST  checkpoints/BEST

LATEST and BEST hold the name of a checkpoint folder. A name that is no `step_` and digits is no name: a file
inside a run never makes anything outside of it be read, moved or removed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kssm_mlx.errors import CheckpointError

RECIPE, MANIFEST, DATA = "recipe.json", "manifest.json", "data"
METRICS, SAMPLES, CHECKS = "metrics.jsonl", "samples.jsonl", "checks.json"
PROBES = "probes.jsonl"  # numbers of checks along the way
CHECKPOINTS, LATEST, BEST = "checkpoints", "LATEST", "BEST"

_STEP = re.compile(r"step_[0-9]{8,18}")
_LONGEST_NAME = 64  # bytes of a pointer file that are looked at


def is_run(path: Path) -> bool:
    return (path / RECIPE).is_file()


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths, of as many parts each, that tell the folders apart: "linear/seed0"."""
    parts = [folder.resolve().parts for folder in folders]
    for n in range(1, max(map(len, parts), default=0) + 1):
        names = [Path(*own[-n:]).as_posix() for own in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return []


def step_name(step: int) -> str:
    """200 -> "step_00000200"."""
    return f"step_{step:08d}"


def is_step_name(name: str) -> bool:
    return _STEP.fullmatch(name) is not None


def list_checkpoints(folder: str | Path) -> dict[int, Path]:
    """Step -> folder of every finished checkpoint in `folder`, oldest first."""
    found = {
        int(p.name.removeprefix("step_")): p for p in Path(folder).glob("step_*") if is_step_name(p.name)
    }
    return dict(sorted(found.items()))


def read_pointer(folder: str | Path, name: str) -> Path | None:
    """The checkpoint that LATEST or BEST names, whether or not it exists; None where the file is absent or
    names none.
    """
    try:
        with open(Path(folder) / name, "rb") as file:
            said = file.read(_LONGEST_NAME).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return Path(folder) / said if is_step_name(said) else None


def pick_checkpoint(run: Path) -> Path:
    """The checkpoint of a run that is used: the best, or the newest where none is marked.

    Raises: CheckpointError where there is none.
    """
    there = list_checkpoints(run / CHECKPOINTS)
    if not there:
        raise CheckpointError(f"{run} has no checkpoint yet; train it first: kssm train --resume")
    best = read_pointer(run / CHECKPOINTS, BEST)
    return best if best and best.is_dir() else list(there.values())[-1]


def find_run(path: Path) -> Path | None:
    """The run that `path` is, or is a checkpoint of; None for anything else."""
    if is_run(path):
        return path
    run = path.parent.parent
    return run if is_step_name(path.name) and is_run(run) else None
