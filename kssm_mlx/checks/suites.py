"""Which checks run when, in which order, and where their verdicts are kept."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kssm_mlx import files
from kssm_mlx.checks import data, gradient, model, run  # noqa: F401  registers their checks
from kssm_mlx.checks.base import (
    REGISTRY,
    Check,
    Context,
    Definition,
    NotMeasurable,
    apply_waivers,
    verdict,
)
from kssm_mlx.errors import CheckpointError, ConfigError, nearest

PREFLIGHT = ("C14", "C13", "C15", "C29", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C16")
FINAL = ("C4", "C8", "C17", "C18", "C19")
SUITES = {"P": PREFLIGHT, "S": FINAL}
FILE = "checks.json"


def run_suite(
    context: Context, which: str | Iterable[str] = "P", waivers: dict[str, str] | None = None
) -> list[Check]:
    """The verdicts of a level ("P", "S") or of single ids, in the order of the suite, waivers applied.

    Raises: ConfigError for a level or an id that does not exist.
    """
    checks = [run_check(REGISTRY[id], context) for id in select(which)]
    return apply_waivers(checks, waivers or {})


def select(which: str | Iterable[str]) -> tuple[str, ...]:
    """The ids of a level, or the given ids after a look whether each exists."""
    if isinstance(which, str):
        if which not in SUITES:
            raise ConfigError(f"no level {which!r}; levels are {', '.join(SUITES)}")
        return SUITES[which]
    ids = tuple(which)
    for id in ids:
        if id not in REGISTRY:
            raise ConfigError(f"no check {id!r}{nearest(id, REGISTRY)}; known: {', '.join(REGISTRY)}")
    return ids


def run_check(definition: Definition, context: Context) -> Check:
    """One verdict with its time. A check that raises has failed: what it measures cannot even be run."""
    start = time.perf_counter()
    try:
        result = definition.run(context)
    except NotMeasurable as e:
        result = verdict(definition.id, "not measurable", str(e), "", "")
    except Exception as e:
        result = verdict(
            definition.id,
            "fail",
            f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else 'no message'}",
            "a measurement",
            "the traceback is in checks.json",
            traceback=traceback.format_exc(),
        )
    return replace(result, seconds=time.perf_counter() - start)


def write_checks(folder: str | Path, stage: str, checks: Iterable[Check]) -> None:
    """Put the verdicts of a stage ("preflight", "final", ...) into the run folder's checks.json, atomically.

    The file is {stage: [check, ...]}; other stages stay, the same stage is replaced.
    Raises: CheckpointError when the file cannot be written.
    """
    path = Path(folder) / FILE
    stages = {**read_checks(folder), stage: [_plain(c.to_json()) for c in checks]}
    try:
        files.replace(path, json.dumps(stages, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    except OSError as e:
        raise CheckpointError(f"cannot write {path}: {(e.strerror or str(e)).lower()}") from None


def read_checks(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """{stage: [check, ...]} of a run folder; empty where nothing was checked yet.

    Raises: CheckpointError for a file that is not JSON.
    """
    path = Path(folder) / FILE
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise CheckpointError(f"cannot read {path}: {e}; move it away, it is written anew") from None


def _plain(value: Any) -> Any:
    """JSON without NaN and infinity, which the standard does not have: they become words."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):  # numpy and mlx scalars
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
