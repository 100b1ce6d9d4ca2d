"""What a run folder says of itself: its recipe, its rows, where its checkpoints are, what it was run with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kssm_mlx import environment, files, models
from kssm_mlx.checks.core.registry import Context, require_value
from kssm_mlx.checks.pretrained.files import base_model_verdict
from kssm_mlx.digest import root_digest, tensor_digest
from kssm_mlx.errors import CheckpointError
from kssm_mlx.files import explain_write_errors
from kssm_mlx.models.base import sizes_of
from kssm_mlx.runs.arms import DERIVED
from kssm_mlx.runs.layout import MANIFEST, RECIPE, is_run
from kssm_mlx.runs.records import read_recipe, write_checks
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.recipe import Recipe


def write_description(
    folder: Path, recipe: Recipe, context: Context, waivers: dict[str, str], *, verify: bool = True
) -> None:
    """recipe.json, the expanded recipe and configuration, and manifest.json, what it was run with.

    waivers, verify: which checks may fail and why, and whether any check may stop the run.
    """
    initial = require_value(context.initial, "initial")
    described = {**recipe.model_dump(), "configuration": models.config_to_dict(context.config)}
    if context.base_digest:
        described["host_digest"] = context.base_digest
        told = base_model_verdict(context.base_digest, context.base_notes)
        write_checks(folder, "host", [told.to_json()])
    manifest = {
        "command": " ".join(["kssm", *sys.argv[1:]]) if sys.argv[0].endswith("kssm") else None,
        "parameters": sum(sizes_of(context.model).values()),
        "trained_parameters": sum(array.size for array in initial.values()),
        "initial_digest": root_digest({n: tensor_digest(a) for n, a in initial.items()}),
        "data": context.data.index,
        "host": {"root": context.base_digest, **context.base_notes} if context.base_digest else None,
        "environment": environment.facts(),
        "waivers": waivers,
        "verify": verify,
    }
    with explain_write_errors("the run", folder):
        for name, value in ((RECIPE, described), (MANIFEST, manifest)):
            files.replace(folder / name, json.dumps(value, indent=1) + "\n")


def read_run_recipe(folder: Path) -> Recipe:
    """The recipe that a run folder began with.

    Raises: CheckpointError for a file without the sections that every run writes: by the defaults another run
        would go on in its place.
    """
    table = read_recipe(folder)
    if absent := [name for name in ("data", "model", "train") if not table.get(name)]:
        raise CheckpointError(
            f"{folder / RECIPE} has no [{absent[0]}], so it is not what the run began with; restore it from "
            "a copy of the run"
        )
    return recipes.parse(drop_keys(table, *DERIVED), where=str(folder / RECIPE))


def read_base_digest(folder: Path) -> str | None:
    """The root digest of the base model that the run in `folder` began with; None where it has none."""
    return read_recipe(folder).get("host_digest") if is_run(folder) else None


def drop_keys(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k not in keys}
