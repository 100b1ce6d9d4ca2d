"""What every task is: a frozen dataclass that makes rows, knows its rule and what can be reached on it.

A row depends on (seed, split, index) alone: epochs can repeat it, the validation rows never change. A row of
L + 1 tokens has L targets; those outside `scored` are read and not predicted. What a place asks for is the
next token, or, of a labelled task, a label that the tokens up to there decide: `answers` has it either way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np

from kssm_mlx.data.tasks.ceilings import Bound
from kssm_mlx.errors import ConfigError, nearest

SPLITS = ("train", "validation")


class Row(NamedTuple):
    """Shapes: ids int [L + 1]; scored bool [L + 1], which places have a target, never the first. Of a
    labelled task the last id is 0, which nobody reads.
    """

    ids: np.ndarray
    scored: np.ndarray


@dataclass(frozen=True)
class Task(ABC):
    """A rule, its rows and its bounds. `length` counts the targets of a row, which is train.context.

    labelled: whether targets are labels beside the tokens, not the tokens that come next. prefixes: whether
    the beginning of a row is a row, so that a curriculum may cut it.
    """

    labelled: ClassVar[bool] = False
    prefixes: ClassVar[bool] = False
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
        """The most probable next token, for one who knows the rule and sees the past only; of a labelled task
        the label of the last token read. Shapes: [t] -> answer t of the row.
        """

    def answers(self, ids: np.ndarray) -> np.ndarray:
        """What each place of a row asks for; the first of it, which is never scored, is any id.

        Shapes: ids [..., L + 1] -> [..., L + 1].
        """
        return ids

    def at(self, length: int) -> Task:
        """The same task with rows of another length. Raises: ConfigError for a task that has no such rows."""
        if length == self.length:
            return self
        raise ConfigError(f"the rows of this task have {self.length} targets, and no form with {length}")

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
        # Against the ceiling and not against 1: a row that leaves doubt cannot be answered better.
        room = self.bound(metric).accuracy - self.baseline
        return (accuracy - self.baseline) / room if room > 0 else 0.0

    def rows(self, split: str) -> int:
        """How many rows the token files of a split have."""
        return self.train_rows if split == "train" else self.validation_rows


@dataclass(frozen=True)
class OfAnyLength(Task):
    """A task whose rows can have any length. test_lengths: at which evaluations score it too, each on
    `test_rows` rows.
    """

    train_length: int = 64
    test_lengths: tuple[int, ...] = ()
    test_rows: int = 128
    shortest: ClassVar[int] = 1

    def __post_init__(self):
        super().__post_init__()
        lengths = (self.train_length, *self.test_lengths)
        if min(lengths) < self.shortest or self.test_rows < 1:
            raise ConfigError(
                f"data.task: train_length {self.train_length}, test_lengths {list(self.test_lengths)}, "
                f"test_rows {self.test_rows}; expected lengths from {self.shortest} and at least one row"
            )

    @property
    def length(self) -> int:
        return self.train_length

    def at(self, length: int) -> Task:
        return replace(self, train_length=length)

    def places(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """last: the last target of the row."""
        return {"last": np.arange(1, ids.size) == ids.size - 1}


@dataclass(frozen=True)
class Labelled(OfAnyLength):
    """A label at the places of a row, which the tokens read up to there decide."""

    labelled: ClassVar[bool] = True

    @abstractmethod
    def answers(self, ids: np.ndarray) -> np.ndarray: ...

    def predict(self, prefix: np.ndarray) -> int:
        return int(self.answers(np.append(prefix, 0))[-1])


def make_generator(seed: int, split: str, index: int = 0) -> np.random.Generator:
    """The random numbers of one row."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split), index])))
