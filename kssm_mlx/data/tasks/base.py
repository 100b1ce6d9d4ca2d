"""What every task is: a frozen dataclass that makes rows, knows its rule and what can be reached on it.

A row depends on (seed, split, index) alone: epochs can repeat it, the validation rows never change. A row of
L + 1 tokens has L targets; those outside `scored` are read and not predicted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kssm_mlx.data.tasks.ceilings import Bound
from kssm_mlx.errors import ConfigError, nearest

SPLITS = ("train", "validation")


class Row(NamedTuple):
    """Shapes: ids int [L + 1]; scored bool [L + 1], which tokens are targets, never the first."""

    ids: np.ndarray
    scored: np.ndarray


@dataclass(frozen=True)
class Task(ABC):
    """A rule, its rows and its bounds. `length` counts the targets of a row, which is train.context."""

    train_rows: int = 10_000
    validation_rows: int = 2_000

    def __post_init__(self):
        for split in SPLITS:
            if self.rows(split) < 1:
                raise ConfigError(
                    f"data.task.{split}_rows must be at least 1, got {getattr(self, f'{split}_rows')}"
                )

    @property
    @abstractmethod
    def length(self) -> int: ...

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of a guess among the answers there are."""

    @abstractmethod
    def sample(self, seed: int, split: str, index: int) -> Row: ...

    @abstractmethod
    def predict(self, prefix: np.ndarray) -> int:
        """The most probable next token, for one who knows the rule and sees the past only."""

    @property
    def baseline(self) -> float:
        """The accuracy that counts as no skill."""
        return self.chance

    def places(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Named parts of the targets that are worth a number of their own. Shapes: ids [L+1] -> bool [L]."""
        return {}

    @property
    def metrics(self) -> tuple[str, ...]:
        """What there is a bound for: the scored targets and their named parts."""
        return ("scored", *self.places(self.sample(0, "validation", 0).ids))

    def bound(self, metric: str = "scored") -> Bound:
        """Ceiling and floor over the scored targets or a named part.

        Raises: ConfigError for a part that the rows of this task do not have.
        """
        if metric not in self.metrics:
            raise ConfigError(
                f"no bound for {metric!r}; this task has {', '.join(self.metrics)}"
                f"{nearest(metric, self.metrics)}"
            )
        return self._bound(metric)

    def _bound(self, metric: str) -> Bound:
        """Where the rule leaves no doubt."""
        return Bound(1.0, 0.0)

    def skill(self, accuracy: float, metric: str = "scored") -> float:
        """0 for no skill, 1 for the ceiling; 0 too where the ceiling leaves no room for any."""
        room = self.bound(metric).accuracy - self.baseline
        return (accuracy - self.baseline) / room if room > 0 else 0.0

    def rows(self, split: str) -> int:
        """How many rows the token files of a split have."""
        return self.train_rows if split == "train" else self.validation_rows


def make_generator(seed: int, split: str, index: int = 0) -> np.random.Generator:
    """The random numbers of one row."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split), index])))
