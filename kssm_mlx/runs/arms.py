"""Which runs ask the same question: an arm is all runs of one recipe, whatever their seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

METADATA_SECTIONS = frozenset({"about", "waive"})  # sections that do not affect computation
OBSERVATION_SECTIONS = frozenset({"eval", "save"})  # what is looked at and kept on the way
DERIVED = ("configuration", "host_digest")  # what recipe.json holds beside the recipe

Run = TypeVar("Run")


def group_by_arm(runs: Iterable[Run], recipe: Callable[[Run], Mapping[str, Any]]) -> list[list[Run]]:
    """The runs by arm, arms and runs in the order in which they came. recipe: of a run, as in recipe.json."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(_question(recipe(run)), []).append(run)
    return list(grouped.values())


def seed_of(recipe: Mapping[str, Any]) -> int:
    return recipe.get("train", {}).get("seed", 0)


def _question(recipe: Mapping[str, Any]) -> str:
    """What is trained, without its seed. Two runs that differ in how they were watched are of one arm."""
    left_out = {*METADATA_SECTIONS, *OBSERVATION_SECTIONS, *DERIVED}
    table = {name: section for name, section in recipe.items() if name not in left_out}
    train = {name: value for name, value in table.get("train", {}).items() if name != "seed"}
    return json.dumps({**table, "train": train}, sort_keys=True, default=str)
