"""One unit of an experiment: an arm with a seed, and what doing it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """purpose: "select" for a run that chooses settings. at: which evaluation counts. name: of its files."""

    arm: str
    seed: int
    recipe: Recipe
    protocol: str = "train"
    purpose: Literal["run", "select"] = "run"
    at: Literal["last", "best"] = "last"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """ARM/seed0, such that every arm has a folder name of its own."""
        return f"{safe_name(self.arm)}/seed{self.seed}"

    def run_folder(self, experiment: Path) -> Path:
        return experiment / "runs" / self.name

    def part(self, experiment: Path) -> Path:
        return experiment / "parts" / f"{self.name}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """The whole recipe as plain values."""
        return self.recipe.model_dump(mode="json", exclude_none=True)

    @property
    def measures(self) -> dict[str, Any]:
        """What is done and measured, beside the recipe."""
        return {"name": self.protocol, "at": self.at, "options": self.options}

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "recipe": self.settings}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        return cls(**{**values, "recipe": recipes.parse(values["recipe"], where=values["arm"])})


@dataclass(frozen=True)
class Measured:
    """What a protocol measured of a job: numbers by name, and per independent unit of the run."""

    metrics: dict[str, float]
    units: dict[str, list[float]] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)


def safe_name(arm: str) -> str:
    """An arm as the name of a folder: "linear, steps=10" -> "linear_steps-10"."""
    return arm.replace(", ", "_").replace("=", "-").replace(" ", "-")
