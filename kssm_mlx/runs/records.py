"""The JSON files of a run as plain values, whatever a crash or a hand did to them: a value, or one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kssm_mlx import files
from kssm_mlx.errors import CheckpointError
from kssm_mlx.parsing import parse_json, read_json_object
from kssm_mlx.runs import kinds
from kssm_mlx.runs.layout import CHECKS, MANIFEST, METRICS, RECIPE, SAMPLES

OLD_KEYS = {"model.host": "model.base"}  # of recipes up to 0.1.0


def read_recipe(run: Path) -> dict[str, Any]:
    """recipe.json: the recipe that the run began with, with what was derived from it (`DERIVED`)."""
    recipe = rename_old_keys(read_json_object(run / RECIPE, CheckpointError))
    kinds.require_kinds(recipe, kinds.RECIPE, run / RECIPE)
    kinds.require_kinds(recipe.get("train", {}), kinds.TRAIN, f"{run / RECIPE}: train")
    kinds.require_kinds(recipe.get("eval", {}), kinds.EVAL, f"{run / RECIPE}: eval")
    about = recipe.get("about", {})
    kinds.require_kinds(about, kinds.ABOUT, f"{run / RECIPE}: about")
    if expected := about.get("expected"):
        kinds.require_kinds(expected, kinds.EXPECTED, f"{run / RECIPE}: about.expected", all=True)
    return recipe


def rename_old_keys(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's table under the names that its keys have today; the one given stays as it is."""
    for old, new in OLD_KEYS.items():
        (section, was), name = old.split("."), new.split(".")[1]
        table = recipe.get(section)
        if isinstance(table, dict) and was in table and name not in table:
            table = {name if key == was else key: value for key, value in table.items()}
            recipe = {**recipe, section: table}
    return recipe


def read_manifest(run: Path) -> dict[str, Any]:
    """manifest.json: what the run was made with."""
    manifest = read_json_object(run / MANIFEST, CheckpointError)
    kinds.require_kinds(manifest, kinds.MANIFEST, run / MANIFEST)
    environment = manifest.get("environment", manifest)
    kinds.require_kinds(environment, kinds.ENVIRONMENT, f"{run / MANIFEST}: environment")
    return manifest


def read_checks(run: Path) -> dict[str, list[dict[str, Any]]]:
    """checks.json: {stage: [verdict, ...]}; empty where nothing was checked yet.

    Raises: CheckpointError for a file that is something else.
    """
    path = run / CHECKS
    if not path.exists():
        return {}
    try:
        stages = read_json_object(path, CheckpointError)
    except CheckpointError as e:
        raise CheckpointError(f"{e}; move it away, it is written anew") from None
    for stage, verdicts in stages.items():
        if not isinstance(verdicts, list) or not all(isinstance(v, dict) for v in verdicts):
            raise CheckpointError(f"{path}: stage {stage!r} is no list of verdicts; move the file away")
        for verdict in verdicts:
            _require_verdict(verdict, f"{path}: stage {stage!r}")
    return stages


def write_checks(run: Path, stage: str, verdicts: list[dict[str, Any]]) -> None:
    """Put the verdicts of a stage ("preflight", "final", ...) into checks.json, atomically.

    Other stages stay, the same stage is replaced.
    Raises: CheckpointError when the file cannot be written.
    """
    path = run / CHECKS
    stages = {**read_checks(run), stage: verdicts}
    try:
        files.replace(path, json.dumps(stages, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    except OSError as e:
        raise CheckpointError(f"cannot write {path}: {(e.strerror or str(e)).lower()}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl or samples.jsonl, those with a step; a last line that a crash cut is dropped.

    Raises: CheckpointError naming any other line that is no row.
    """
    return [row for row in _rows(path) if "step" in row]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return read_rows(run / METRICS)


def read_samples(run: Path) -> list[dict[str, Any]]:
    """The rows of samples.jsonl. Raises: CheckpointError naming one that has no text."""
    rows = read_rows(run / SAMPLES)
    for row in rows:
        kinds.require_kinds({"prompt": "", "temperature": None, **row}, kinds.SAMPLE, run / SAMPLES, all=True)
    return rows


def _require_verdict(verdict: dict[str, Any], where: str) -> None:
    kinds.require_kinds(verdict, kinds.VERDICT, where, all=True)
    numbers, where = verdict["numbers"], f"{where}: {verdict['id']}"
    kinds.require_kinds(numbers, kinds.MEASURED, where)
    kinds.require_kinds(numbers.get("ladder", {}), kinds.RUNGS, where)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except ValueError as e:
            if number < len(lines):
                raise CheckpointError(f"{path} line {number} is not JSON ({e}); remove it to go on") from None
            return
        step = row.get("step", 0) if isinstance(row, dict) else None
        if isinstance(step, bool) or not isinstance(step, int | float):
            raise CheckpointError(f"{path} line {number} is no row with a step; remove it to go on")
        kinds.require_kinds(row, kinds.ROW, f"{path} line {number}")
        yield row
