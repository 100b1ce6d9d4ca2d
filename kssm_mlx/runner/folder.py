"""What a run folder says of itself: its recipe, its rows, where its checkpoints are, what it was run with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kssm_mlx import environment, files, models
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.pretrained.files import host_verdict
from kssm_mlx.checks.suite import write_checks
from kssm_mlx.digest import root_digest, tensor_digest
from kssm_mlx.errors import CheckpointError
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.disk import writing
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.state import flatten

BESIDE_RECIPE = ("configuration", "host_digest")  # what recipe.json holds beside the recipe


def describe(
    folder: Path, recipe: Recipe, context: Context, waivers: dict[str, str], *, verify: bool = True
) -> None:
    """recipe.json, the expanded recipe and configuration, and manifest.json, what it was run with.

    waivers, verify: which checks may fail and why, and whether any check may stop the run.
    """
    described = {**recipe.model_dump(), "configuration": models.config_to_dict(context.config)}
    if context.host:
        described["host_digest"] = context.host
        write_checks(folder, "host", [host_verdict(context.host, context.host_notes)])
    manifest = {
        "command": " ".join(["kssm", *sys.argv[1:]]) if sys.argv[0].endswith("kssm") else None,
        "parameters": sum(array.size for array in flatten(context.model.parameters()).values()),
        "trained_parameters": sum(array.size for array in context.initial.values()),
        "initial_digest": root_digest({n: tensor_digest(a) for n, a in context.initial.items()}),
        "data": context.data.index,
        "host": {"root": context.host, **context.host_notes} if context.host else None,
        "environment": environment.facts(),
        "waivers": waivers,
        "verify": verify,
    }
    with writing("the run", folder):
        for name, value in (("recipe.json", described), ("manifest.json", manifest)):
            files.replace(folder / name, json.dumps(value, indent=1) + "\n")


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a run folder began with."""
    saved = without(recipe_json(folder), *BESIDE_RECIPE)
    return recipes.parse(saved, where=str(folder / "recipe.json"))


def host_of(folder: Path) -> str | None:
    """The root digest of the host that the run in `folder` began with; None where it has none."""
    return recipe_json(folder).get("host_digest") if is_run(folder) else None


def recipe_json(folder: Path) -> dict[str, Any]:
    return _json(folder / "recipe.json")


def manifest_of(folder: Path) -> dict[str, Any]:
    """What the run was made with."""
    return _json(folder / "manifest.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from None
    except ValueError as e:
        raise CheckpointError(f"{path} is not JSON: {e}") from None


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def is_run(path: Path) -> bool:
    return (path / "recipe.json").is_file()


def locate(path: Path) -> tuple[Path, Path] | None:
    """(run folder, checkpoint folder) of a run or of a checkpoint; None for weights from elsewhere."""
    if is_run(path):
        steps = checkpoint.steps(path / "checkpoints")
        if not steps:
            raise CheckpointError(f"{path} has no checkpoint yet; train it first: kssm train --resume")
        best = checkpoint.pointer(path / "checkpoints", "BEST")
        return path, best if best and best.is_dir() else list(steps.values())[-1]
    run = path.parent.parent
    return (run, path) if path.name.startswith("step_") and is_run(run) else None


def without(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k not in keys}
