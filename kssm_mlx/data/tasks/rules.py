"""Tasks with one answer per row that no earlier context repeats: a sum, a count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kssm_mlx.data.tasks.base import Row, Task, make_generator
from kssm_mlx.data.tasks.ceilings import Bound
from kssm_mlx.errors import ConfigError


@dataclass(frozen=True)
class Modular(Task):
    """x + y = z modulo p, every pair on one side of the split; z alone is scored.

    Rows are [x, +, y, =, z, PAD ...]. whole_row scores every target, padding included, as the published task
    did: its "accuracy" is then mostly that of knowing where the padding is.
    """

    p: int = 113
    length: int = 15
    train_share: float = 0.5
    whole_row: bool = False

    def __post_init__(self):
        if not (self.p >= 2 and self.length >= 4 and 0 < self.train_share < 1 and self._train_pairs):
            raise ConfigError(
                f"data.task: p {self.p}, length {self.length}, train_share {self.train_share}; "
                "expected p from 2, length from 4 and a share between 0 and 1 of at least one pair"
            )
        super().__post_init__()

    @property
    def vocab_size(self) -> int:
        return 1 << (self.p + 3).bit_length()

    @property
    def chance(self) -> float:
        return 1 / self.p

    @property
    def baseline(self) -> float:
        """Chance; over whole rows, what one reaches who knows all but x, y and z."""
        return (self.length - 2 + 2 * self.chance) / self.length if self.whole_row else self.chance

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("scored", "all")

    @property
    def _train_pairs(self) -> int:
        return int(self.train_share * self.p**2)

    def rows(self, split: str) -> int:
        pairs = self._train_pairs if split == "train" else self.p**2 - self._train_pairs
        return min(super().rows(split), pairs)

    def sample(self, seed: int, split: str, index: int) -> Row:
        first = 0 if split == "train" else self._train_pairs
        x, y = divmod(int(_pairs(seed, self.p)[first + index]), self.p)
        plus, equals, pad = range(self.p, self.p + 3)
        ids = np.full(self.length + 1, pad)
        ids[:5] = x, plus, y, equals, (x + y) % self.p
        return Row(ids, np.arange(ids.size) > 0 if self.whole_row else np.arange(ids.size) == 4)

    def predict(self, prefix: np.ndarray) -> int:
        if prefix.size == 4:
            return int(prefix[0] + prefix[2]) % self.p
        return {1: self.p, 3: self.p + 1}.get(prefix.size, self.p + 2 if prefix.size > 4 else 0)

    def _bound(self, metric: str) -> Bound:
        """metric "all": over every target of the row, of which only y is uncertain."""
        if metric == "scored" and not self.whole_row:
            return Bound(1.0, 0.0)
        return Bound((self.length - 1 + self.chance) / self.length, math.log(self.p) / self.length)


@lru_cache(maxsize=4)
def _pairs(seed: int, p: int) -> np.ndarray:
    """All pairs x p + y in a seeded order, of which the first are for training."""
    return make_generator(seed, "train").permutation(p * p)


@dataclass(frozen=True)
class Counting(Task):
    """Ticks among blanks, then "=": how many ticks there were, modulo n. Every answer is equally frequent."""

    n: int = 5
    length: int = 64

    def __post_init__(self):
        if not 2 <= self.n <= self.length:
            raise ConfigError(
                f"data.task: n {self.n}, length {self.length}; expected 2 <= n <= length, so that every "
                "answer can occur"
            )
        super().__post_init__()

    @property
    def vocab_size(self) -> int:
        return self.n + 3

    @property
    def chance(self) -> float:
        return 1 / self.n

    def sample(self, seed: int, split: str, index: int) -> Row:
        random = make_generator(seed, split, index)
        blank, tick, equals = range(self.n, self.n + 3)
        answer, most = random.integers(self.n), self.length - 1
        count = answer + self.n * random.integers((most - answer) // self.n + 1)
        ids = np.full(self.length + 1, blank)
        ids[random.permutation(most)[:count]] = tick
        ids[-2:] = equals, answer
        return Row(ids, np.arange(ids.size) == self.length)

    def predict(self, prefix: np.ndarray) -> int:
        return int(np.sum(prefix == self.n + 1)) % self.n
