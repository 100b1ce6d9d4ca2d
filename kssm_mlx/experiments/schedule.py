"""Which jobs a design asks for, in which order: seeds outermost, so that arms stay level."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from kssm_mlx.errors import CheckpointError, ConfigError, nearest
from kssm_mlx.experiments.arms import (
    Variant,
    combinations,
    flatten_settings,
    label_of,
    list_variants,
    require_different,
    require_equal,
    require_known_arms,
    resolve_recipe,
)
from kssm_mlx.experiments.decide import require_known_metrics
from kssm_mlx.experiments.design import Design
from kssm_mlx.experiments.job import Job, safe_name
from kssm_mlx.experiments.protocols import find_protocol, parse_options
from kssm_mlx.parsing import parse_json
from kssm_mlx.runs.arms import METADATA_SECTIONS
from kssm_mlx.training.checkpoints.identity import flatten_keys, list_differences
from kssm_mlx.training.recipe import parse

LOWER_IS_BETTER = ("nats", "bits", "perplexity", "best_nats", "repetition")


def require_runnable(design: Design, *, smoke: bool = False) -> list[Variant]:
    """Everything that can be refused before the first run. Returns the arms.

    Raises: ConfigError naming an unknown arm, option, protocol or metric, a recipe that cannot be used, or
        arms that differ in what should be equal.
    """
    protocol = find_protocol(design.run.protocol)
    require_known_metrics(design, protocol.metrics)
    variants = list_variants(design)
    for variant in variants:
        parse_options(protocol, {**design.options, **variant.options})
    require_known_arms(design, variants)
    _require_own_folders(variants)
    recipes = {v.name: resolve_recipe(design, v, design.run.seeds[0], smoke=smoke) for v in variants}
    require_equal(design, recipes)
    require_different(variants, {} if smoke else recipes)  # made tiny, arms may be alike
    return variants


def list_selections(design: Design, variants: Iterable[Variant], *, smoke: bool = False) -> list[Job]:
    """The runs that choose settings: every arm with every choice, on the seed of [select]."""
    select = design.select
    if select is None:
        return []
    shared = flatten_settings(select.set)
    return [
        _job(design, v, select.seed, {**shared, **choice}, smoke, f"{v.name}, {label_of(choice)}", "select")
        for v in variants
        for choice in combinations(select.grid)
    ]


def list_jobs(
    design: Design,
    variants: Sequence[Variant],
    chosen: dict[str, dict[str, Any]] | None = None,
    *,
    seeds: int | None = None,
    only: Sequence[str] = (),
    smoke: bool = False,
) -> list[Job]:
    """The runs that count. chosen: arm -> settings that [select] found; seeds: the first so many only."""
    known = [v.name for v in variants]
    for name in only:
        if name not in known:
            raise ConfigError(f"--only: no arm {name!r}{nearest(name, known)}; arms are {', '.join(known)}")
    if seeds is not None and not 1 <= seeds <= len(design.run.seeds):
        raise ConfigError(f"--seeds {seeds}: the experiment has {len(design.run.seeds)}; take 1 to that many")
    return [
        _job(design, v, seed, (chosen or {}).get(v.name, {}), smoke, v.name, "run")
        for seed in design.run.seeds[:seeds]
        for v in variants
        if not only or v.name in only
    ]


def choose_settings(
    design: Design, variants: Iterable[Variant], parts: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Arm -> the settings of its best selection run: {"linear": {"train.learning_rate": 0.002}}.

    parts: name of a selection's arm -> its row. An arm none of whose selections ended has no entry.
    """
    if design.select is None:
        return {}
    sign = 1 if design.metric.name.startswith(LOWER_IS_BETTER) else -1
    found = {}
    for variant in variants:
        scores = []
        for choice in combinations(design.select.grid):
            row = parts.get(f"{variant.name}, {label_of(choice)}", {})
            value = row.get("metrics", {}).get(design.metric.name)
            if value is not None:
                scores.append((sign * value, len(scores), choice))
        if scores:
            found[variant.name] = min(scores)[2]
    return found


def read_part(job: Job, folder: Path) -> dict[str, Any] | None:
    """The row of a job that is done; None for one that is not.

    Raises: CheckpointError for a damaged file, and for the row of a run with other settings.
    """
    path = job.part(folder)
    try:
        row = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise CheckpointError(f"{path} is not JSON: {e}; delete it and the run is done again") from None
    if not isinstance(row, dict) or row.get("kind") != "run":
        raise CheckpointError(f"{path} is no result of a run; delete it and the run is done again")
    then = _list_settings(_fill_defaults(row.get("settings")), row.get("protocol"))
    now = _list_settings(*json.loads(json.dumps([job.settings, job.measures])))
    if found := list_differences(then, now):
        raise CheckpointError(
            f"{path} is of a run with other settings: {'; '.join(found[:3])}; "
            "choose another folder, or delete it and its run"
        )
    return row


def _list_settings(recipe: Any, protocol: Any) -> dict[str, Any]:
    """Without what a recipe says about itself: that it takes longer than was thought changes no result."""
    if isinstance(recipe, dict):
        recipe = {name: section for name, section in recipe.items() if name not in METADATA_SECTIONS}
    return flatten_keys({"recipe": recipe, "protocol": protocol})


def _fill_defaults(settings: Any) -> Any:
    """With the defaults of settings that there were not when these were written."""
    try:
        return parse(settings).model_dump(mode="json", exclude_none=True)
    except (ConfigError, TypeError, AttributeError):
        return settings  # what differs is named as it is


def _job(
    design: Design,
    variant: Variant,
    seed: int,
    extra: dict[str, Any],
    smoke: bool,
    name: str,
    purpose: Literal["run", "select"],
) -> Job:
    return Job(
        arm=name,
        seed=seed,
        recipe=resolve_recipe(design, variant, seed, extra, smoke=smoke),
        protocol=design.run.protocol if purpose == "run" else "train",
        purpose=purpose,
        at=design.metric.at,
        options={**design.options, **variant.options} if purpose == "run" else {},
    )


def _require_own_folders(variants: Sequence[Variant]) -> None:
    taken: dict[str, str] = {}
    for variant in variants:
        folder = safe_name(variant.name)
        if folder in taken:
            raise ConfigError(f"arms {taken[folder]!r} and {variant.name!r} would share a folder; rename one")
        taken[folder] = variant.name
