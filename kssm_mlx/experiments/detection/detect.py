"""Everything in two processes: the controls first, whose runs the rows then break."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kssm_mlx import environment
from kssm_mlx.checks.core.registry import run_checks
from kssm_mlx.experiments.detection import matrix
from kssm_mlx.experiments.detection.bench import CONTROLS, Bench
from kssm_mlx.runner.base_models import ensure_base_model
from kssm_mlx.runner.train import train
from kssm_mlx.training import recipe as recipes

SEEDS = range(5)
GRAFTED = "failures/attempt-2"  # whose base model other failed runs share: trained before them


def detect(home: Path, workers: int = 2, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The matrix as plain values. home: an empty folder for the runs."""
    began = time.monotonic()
    bench = Bench(home)
    for family in CONTROLS:
        bench.data(bench.recipe(family))  # before several processes want them
    with (
        _without_compilation(home),
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
    ):
        base = pool.submit(_train_base_model)
        runs = {(f, s): pool.submit(_measure_control, home, f, s) for f in CONTROLS for s in SEEDS}
        said = {f: [c for s in SEEDS for c in runs[f, s].result()] for f in CONTROLS}
        controls = {f: matrix.count_verdicts(said[f], len(SEEDS)) for f in CONTROLS}
        for family in CONTROLS:
            say(f"control {family}: failed {', '.join(controls[family]['failed']) or 'none'}")
        base.result()
        claim = pool.submit(_claim, home)
        rows = {name: pool.submit(_row, home, name) for name in matrix.rows()}
        found = {}
        for name, row in rows.items():
            found[name] = row.result()
            say(f"{name}: {', '.join(found[name]['caught']) or 'NOTHING'}")
        controls["claim"] = matrix.count_verdicts(claim.result(), 3)
    facts = environment.facts()
    return {
        "environment": {name: facts[name] for name in ("commit", "python", "packages", "machine", "cores")},
        "seconds": round(time.monotonic() - began),
        "checks": {id: definition.title for id, definition in run_checks().items()},
        "controls": controls,
        "rows": found,
    }


@contextmanager
def _without_compilation(home: Path) -> Iterator[None]:
    """The processes begun here compile nothing, which takes longer than what is computed, and trust no base
    model that was verified elsewhere.
    """
    own = {"MLX_DISABLE_COMPILE": "1", "KSSM_CACHE": str(home / "cache")}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _train_base_model() -> None:
    ensure_base_model(recipes.load(GRAFTED).model, train)


def _measure_control(home: Path, family: str, seed: int) -> matrix.Said:
    return matrix.healthy(family, seed, Bench(home))


def _claim(home: Path) -> matrix.Said:
    return matrix.sound_claim(Bench(home))


def _row(home: Path, name: str) -> dict[str, Any]:
    return matrix.measure(matrix.rows()[name], Bench(home))
