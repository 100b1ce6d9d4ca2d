"""The tasks of MAD that are not recall: selective copying, memorisation, compression.

Source: Poli et al. 2024, arXiv 2403.17844, with the sizes of its baseline. Labels stand where they are asked
for, and what was answered is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kssm_mlx.data.tasks.base import Labelled, Row, make_generator
from kssm_mlx.errors import ConfigError

MAP = 12345  # seed of what is memorised: the same for every run


@dataclass(frozen=True)
class BlankCopy(Labelled):
    """`symbols` ids at random places among blanks, a sign, and as many blanks, at which they are asked for in
    order. Of `vocab` ids the last two are the blank and the sign.
    """

    train_rows: int = 12_800
    validation_rows: int = 1_280
    train_length: int = 256
    vocab: int = 16
    symbols: int = 16

    def __post_init__(self):
        super().__post_init__()
        shortest = min((self.train_length, *self.test_lengths))
        if self.vocab < 4 or self.symbols < 1 or shortest < 2 * self.symbols + 1:
            raise ConfigError(
                f"data.task: vocab {self.vocab}, symbols {self.symbols} in {shortest} places; expected vocab "
                "from 4 and twice as many places as symbols, and one"
            )

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - 2)

    def sample(self, seed: int, split: str, index: int) -> Row:
        random, span = make_generator(seed, split, index), self.length - self.symbols - 1
        ids = np.full(self.length + 1, self.vocab - 2)
        at = np.sort(random.permutation(span)[: self.symbols])
        ids[at] = random.integers(0, self.vocab - 2, self.symbols)
        ids[span], ids[-1] = self.vocab - 1, 0
        return Row(ids, np.arange(ids.size) > span + 1)

    def answers(self, ids: np.ndarray) -> np.ndarray:
        labels, span = np.zeros_like(ids), ids.shape[-1] - self.symbols - 2
        given = ids[..., :span]
        labels[..., span + 2 :] = given[given < self.vocab - 2].reshape(*ids.shape[:-1], self.symbols)
        return labels

    def predict(self, prefix: np.ndarray) -> int:
        asked = prefix.size - 1 - int(np.argmax(prefix == self.vocab - 1))
        return int(prefix[prefix < self.vocab - 2][asked - 1])


@dataclass(frozen=True)
class Memorize(Labelled):
    """Keys, each followed by a sign at which its value is asked for: the same value in every row, so it is
    kept in weights and not in a state. Of `vocab` ids the last is the sign, the smaller half of the others
    are keys.
    """

    train_rows: int = 256
    validation_rows: int = 1_280
    train_length: int = 32
    vocab: int = 256

    def __post_init__(self):
        super().__post_init__()
        lengths = (self.train_length, *self.test_lengths)
        if self.vocab < 5 or any(n % 2 for n in lengths):
            raise ConfigError(
                f"data.task: vocab {self.vocab}, lengths {list(lengths)}; expected vocab from 5 and even "
                "lengths, of a key and a sign each"
            )

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def _keys(self) -> int:
        return (self.vocab - 1) // 2

    @property
    def chance(self) -> float:
        return 1 / self._keys

    def sample(self, seed: int, split: str, index: int) -> Row:
        ids = np.full(self.length + 1, self.vocab - 1)
        ids[:-1:2] = make_generator(seed, split, index).integers(0, self._keys, self.length // 2)
        ids[-1] = 0
        places = np.arange(ids.size)
        return Row(ids, (places % 2 == 0) & (places > 0))

    def answers(self, ids: np.ndarray) -> np.ndarray:
        labels = np.zeros_like(ids)
        labels[..., 2::2] = _values(self._keys, self.vocab - 1)[ids[..., :-1:2]]
        return labels


@lru_cache(maxsize=8)
def _values(keys: int, end: int) -> np.ndarray:
    """The value of each key, none twice. Shapes: [keys]."""
    return make_generator(MAP, "train").permutation(np.arange(keys, end))[:keys]


@dataclass(frozen=True)
class Compress(Labelled):
    """Random ids and a sign that ends them; then one place for each, at which it is asked for.

    In MAD a decoder of its own reads the state after the sign, with the place to be said. Here the model
    itself does, from a sign that is the same at every place, so that it has to count, too. Of `vocab` ids the
    last is the end; the sign that asks is one more.
    """

    train_rows: int = 12_800
    validation_rows: int = 1_280
    train_length: int = 63
    vocab: int = 16

    def __post_init__(self):
        super().__post_init__()
        lengths = (self.train_length, *self.test_lengths)
        if self.vocab < 3 or any(n % 2 == 0 or n < 3 for n in lengths):
            raise ConfigError(
                f"data.task: vocab {self.vocab}, lengths {list(lengths)}; expected vocab from 3 and odd "
                "lengths from 3: as many ids as questions, and the end"
            )

    @property
    def symbols(self) -> int:
        return self.length // 2

    @property
    def vocab_size(self) -> int:
        return self.vocab + 1

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - 1)

    def sample(self, seed: int, split: str, index: int) -> Row:
        ids = np.full(self.length + 1, self.vocab)
        ids[: self.symbols] = make_generator(seed, split, index).integers(0, self.vocab - 1, self.symbols)
        ids[self.symbols], ids[-1] = self.vocab - 1, 0
        return Row(ids, np.arange(ids.size) > self.symbols + 1)

    def answers(self, ids: np.ndarray) -> np.ndarray:
        labels, count = np.zeros_like(ids), ids.shape[-1] // 2 - 1
        labels[..., count + 2 :] = ids[..., :count]
        return labels

    def predict(self, prefix: np.ndarray) -> int:
        return int(prefix[prefix.size - self.symbols - 2])
