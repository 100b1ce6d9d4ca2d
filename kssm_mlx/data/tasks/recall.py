"""Tasks that ask for what was read before: all of it, what was marked, what followed, what was hidden."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kssm_mlx.data.tasks.base import Row, Task, make_generator
from kssm_mlx.errors import ConfigError


@dataclass(frozen=True)
class Copy(Task):
    """`symbols` uniform tokens, a separator, and the same again; the second time is scored."""

    vocab: int = 16
    symbols: int = 16

    def __post_init__(self):
        if self.vocab < 2 or not 1 <= self.symbols <= self._span:
            raise ConfigError(
                f"data.task: vocab {self.vocab}, symbols {self.symbols} in {self._span} places; "
                "expected vocab from 2 and at least one symbol, each with a place"
            )
        super().__post_init__()

    @property
    def _span(self) -> int:
        return self.symbols

    @property
    def length(self) -> int:
        return self._span + self.symbols

    @property
    def vocab_size(self) -> int:
        return self.vocab + 1 + (self._span > self.symbols)

    @property
    def chance(self) -> float:
        return 1 / self.vocab

    def sample(self, seed: int, split: str, index: int) -> Row:
        random = make_generator(seed, split, index)
        symbols = random.integers(0, self.vocab, self.symbols)
        # Blanks, where there are more places than symbols.
        given = np.full(self._span, self.vocab + 1)
        given[np.sort(random.permutation(self._span)[: self.symbols])] = symbols
        ids = np.concatenate([given, [self.vocab], symbols])
        return Row(ids, np.arange(ids.size) > self._span)

    def predict(self, prefix: np.ndarray) -> int:
        symbols, done = prefix[: self._span], prefix.size - self._span - 1
        return int(symbols[symbols < self.vocab][done]) if done >= 0 else self.vocab


@dataclass(frozen=True)
class SelectiveCopy(Copy):
    """The symbols stand at random places among blanks; they are to be copied, the blanks are not.

    Source: Gu and Dao 2023, "Mamba", section 4.1.1.
    """

    span: int = 64

    @property
    def _span(self) -> int:
        return self.span


@dataclass(frozen=True)
class Induction(Task):
    """After the trigger comes a token, once, somewhere; after the trigger at the end it comes again.

    Source: Gu and Dao 2023, "Mamba", section 4.1.2.
    """

    vocab: int = 16
    length: int = 64

    def __post_init__(self):
        if self.vocab < 2 or self.length < 4:
            raise ConfigError(
                f"data.task: vocab {self.vocab}, length {self.length}; expected vocab from 2, length from 4"
            )
        super().__post_init__()

    @property
    def vocab_size(self) -> int:
        return self.vocab + 1

    @property
    def chance(self) -> float:
        return 1 / self.vocab

    def sample(self, seed: int, split: str, index: int) -> Row:
        random = make_generator(seed, split, index)
        ids = random.integers(0, self.vocab, self.length + 1)
        first = random.integers(0, self.length - 2)
        ids[[first, -2]], ids[-1] = self.vocab, ids[first + 1]
        return Row(ids, np.arange(ids.size) == self.length)

    def predict(self, prefix: np.ndarray) -> int:
        seen = np.flatnonzero(prefix[:-1] == self.vocab)
        return int(prefix[seen[0] + 1]) if seen.size and prefix[-1] == self.vocab else 0


@dataclass(frozen=True)
class Passkey(Task):
    """A key of a few digits in filler, asked for `distance` tokens later; the answer is scored.

    Ids 0..9 are digits, then KEY, ASK and `vocab` kinds of filler. A row takes one of `distances`; the
    filler before the key fills it up, so rows are equally long and accuracy can be read by distance.
    """

    vocab: int = 64
    digits: int = 5
    distances: tuple[int, ...] = (8, 32, 96)

    def __post_init__(self):
        if self.vocab < 1 or self.digits < 1 or not self.distances or min(self.distances) < 0:
            raise ConfigError(
                f"data.task: vocab {self.vocab}, digits {self.digits}, distances {list(self.distances)}; "
                "expected vocab and digits from 1 and at least one distance from 0"
            )
        super().__post_init__()

    @property
    def length(self) -> int:
        return max(self.distances) + 2 * self.digits + 1

    @property
    def vocab_size(self) -> int:
        return 12 + self.vocab

    @property
    def chance(self) -> float:
        return 0.1

    def sample(self, seed: int, split: str, index: int) -> Row:
        random = make_generator(seed, split, index)
        digits = random.integers(0, 10, self.digits)
        distance = random.choice(self.distances)
        filler = random.integers(12, self.vocab_size, max(self.distances))
        before, after = np.split(filler, [filler.size - distance])
        ids = np.concatenate([before, [10], digits, after, [11], digits])
        return Row(ids, np.arange(ids.size) > self.length - self.digits)

    def predict(self, prefix: np.ndarray) -> int:
        (key,), asked = np.flatnonzero(prefix == 10), np.flatnonzero(prefix == 11)
        return int(prefix[key + 1 + prefix.size - 1 - asked[0]]) if asked.size else 12

    def places(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The answers by their distance."""
        (key,), (asked,) = np.flatnonzero(ids == 10), np.flatnonzero(ids == 11)
        here = int(asked - key - 1 - self.digits)
        answer = np.arange(1, ids.size) > asked
        return {f"distance_{d}": answer & (d == here) for d in self.distances}
