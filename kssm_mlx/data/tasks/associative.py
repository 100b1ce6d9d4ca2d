"""Associative recall: pairs of a key and a value, and what followed a key when it comes again.

MQAR is that of Zoology (Arora et al. 2023, arXiv 2312.04927); the other three are of MAD (Poli et al. 2024,
arXiv 2403.17844), with the sizes of its baseline. MAD trains on every next token and scores the values of
keys that were there before; here these alone are trained on, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from kssm_mlx.data.tasks.base import Labelled, OfAnyLength, Row, make_generator
from kssm_mlx.errors import ConfigError

POWER = 0.01  # of the law by which the questions follow early rather than late, as in Zoology


@dataclass(frozen=True)
class MQAR(Labelled):
    """`pairs` keys with their values, then each key once more among random ids: its value is asked for there,
    and not read afterwards. Ids below vocab / 2 are keys, the others values.
    """

    vocab: int = 128
    pairs: int = 4

    def __post_init__(self):
        super().__post_init__()
        shortest = min((self.train_length, *self.test_lengths))
        if self.pairs < 1 or self.vocab < 4 or self.vocab % 2 or self.vocab // 2 <= self.pairs:
            raise ConfigError(
                f"data.task: vocab {self.vocab}, pairs {self.pairs}; expected an even vocab from 4 and fewer "
                "pairs than half of it"
            )
        if 4 * self.pairs > shortest:
            raise ConfigError(
                f"data.task: pairs {self.pairs} in {shortest} places; expected at least 4 places for a pair"
            )

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def chance(self) -> float:
        return 2 / self.vocab

    def sample(self, seed: int, split: str, index: int) -> Row:
        random, half, read = make_generator(seed, split, index), self.vocab // 2, 2 * self.pairs
        keys = 1 + random.permutation(half - 1)[: self.pairs]
        values = half + random.permutation(half)[: self.pairs]
        slots = (self.length - read) // 2
        likely = np.arange(1, slots + 1) ** (POWER - 1)
        asked = read + 2 * random.choice(slots, self.pairs, replace=False, p=likely / likely.sum())
        ids = random.integers(0, self.vocab, self.length + 1)
        ids[:read:2], ids[1:read:2], ids[asked], ids[-1] = keys, values, keys, 0
        return Row(ids, np.isin(np.arange(ids.size), asked + 1))

    def answers(self, ids: np.ndarray) -> np.ndarray:
        labels = np.zeros_like(ids)
        for i in range(0, 2 * self.pairs, 2):
            here = ids[..., :-1] == ids[..., i : i + 1]
            labels[..., 1:] = np.where(here, ids[..., i + 1 : i + 2], labels[..., 1:])
        return labels

    def places(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """None: the last question stands elsewhere in each row."""
        return {}


@dataclass(frozen=True)
class Recall(OfAnyLength):
    """Pairs of a key and a value, drawn anew for each row: each time a key comes again, its value is asked
    for; the last key of a row was there before. Half of `vocab` are keys, half values.
    """

    train_rows: int = 12_800
    validation_rows: int = 1_280
    train_length: int = 127
    vocab: int = 16

    def __post_init__(self):
        super().__post_init__()
        lengths = (self.train_length, *self.test_lengths)
        if self.vocab < 4 or self.vocab % 2 or any(n % 2 == 0 or n < 3 for n in lengths):
            raise ConfigError(
                f"data.task: vocab {self.vocab}, lengths {list(lengths)}; expected an even vocab from 4, and "
                "odd lengths from 3: a row of pairs has one target less than tokens"
            )

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def chance(self) -> float:
        return 2 / self.vocab

    def sample(self, seed: int, split: str, index: int) -> Row:
        random, half, slots = make_generator(seed, split, index), self.vocab // 2, (self.length + 1) // 2
        keys, values = random.integers(0, half, slots), random.integers(half, self.vocab, half)
        pairs = self._pairs(random, slots)
        keys[-1] = random.choice(keys[:-1][pairs[:-1]])
        ids = np.stack([keys, values[keys]], axis=1)
        ids[~pairs] = self._noise(random, int(np.sum(~pairs)))
        first = np.isin(np.arange(slots), np.flatnonzero(pairs)[np.unique(keys[pairs], return_index=True)[1]])
        scored = np.stack([np.zeros(slots, bool), pairs & ~first], axis=1)
        return Row(ids.ravel(), scored.ravel())

    def _pairs(self, random: np.random.Generator, slots: int) -> np.ndarray:
        """Which places for pairs hold one; the last does, and one before. Shapes: bool [slots]."""
        return np.ones(slots, bool)

    def _noise(self, random: np.random.Generator, count: int) -> np.ndarray:
        """What stands in the other places. Shapes: int [count, 2]."""
        return np.empty((count, 2), int)

    def predict(self, prefix: np.ndarray) -> int:
        keys = prefix[:-1:2] if prefix.size % 2 else prefix[:0]
        seen = np.flatnonzero(keys == prefix[-1])
        return int(prefix[2 * seen[0] + 1]) if seen.size else 0


@dataclass(frozen=True)
class NoisyRecall(Recall):
    """The same, with noise of `noise_vocab` ids of its own in a share of the places for pairs."""

    noise_vocab: int = 16
    noise: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        if self.noise_vocab < 1 or not 0 <= self.noise < 1:
            raise ConfigError(
                f"data.task: noise_vocab {self.noise_vocab}, noise {self.noise}; expected at least one id, "
                "and a share from 0 to below 1"
            )

    @property
    def vocab_size(self) -> int:
        return self.vocab + self.noise_vocab

    def _pairs(self, random: np.random.Generator, slots: int) -> np.ndarray:
        pairs = random.random(slots) >= self.noise
        pairs[[random.integers(slots - 1), -1]] = True
        return pairs

    def _noise(self, random: np.random.Generator, count: int) -> np.ndarray:
        return random.integers(self.vocab, self.vocab_size, (count, 2))


@dataclass(frozen=True)
class FuzzyRecall(OfAnyLength):
    """The same, where a key is one to `key_size` ids and a value one to `value_size`, none twice in it.

    Keys of the validation rows have the full size, as in MAD. Rows begin with padding, the id vocab - 1; of
    the others the smaller half are in keys, the rest in values.
    """

    train_rows: int = 12_800
    validation_rows: int = 1_280
    train_length: int = 127
    vocab: int = 16
    key_size: int = 3
    value_size: int = 3

    def __post_init__(self):
        super().__post_init__()
        half, longest = (self.vocab - 1) // 2, max(self.key_size, self.value_size)
        if min(self.key_size, self.value_size) < 1 or half < max(2, longest):
            raise ConfigError(
                f"data.task: vocab {self.vocab}, key_size {self.key_size}, value_size {self.value_size}; "
                "expected sizes from 1 and at most (vocab - 1) / 2 ids in a key or value"
            )
        if min((self.train_length, *self.test_lengths)) + 1 < 2 * self._longest_row:
            raise ConfigError(
                f"data.task: train_length {self.train_length}, test_lengths {list(self.test_lengths)}; "
                f"expected lengths from {2 * self._longest_row - 1}, two pairs of full size"
            )

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def _longest_row(self) -> int:
        return self.key_size + self.value_size

    @property
    def _keys(self) -> int:
        """How many ids are in keys."""
        return (self.vocab - 1) // 2

    @property
    def chance(self) -> float:
        """Of a guess among the ids that a value may go on with, where it has as many as it can."""
        return 1 / (self.vocab - 1 - self._keys - self.value_size + 1)

    def sample(self, seed: int, split: str, index: int) -> Row:
        random = make_generator(seed, split, index)
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        ids: list[int] = []
        scored: list[bool] = []
        for key, value in self._draw(random, fixed=split != "train"):
            if len(ids) + self._longest_row > self.length + 1 - self._longest_row:
                break
            _say(key, known.get(key, value), key in known, ids, scored)
            known.setdefault(key, value)
        key = list(known)[random.integers(len(known))]
        _say(key, known[key], True, ids, scored)
        padding = self.length + 1 - len(ids)
        return Row(np.array([self.vocab - 1] * padding + ids), np.array([False] * padding + scored))

    def _draw(self, random: np.random.Generator, *, fixed: bool):
        """Pairs without end of the row in sight. fixed: whether keys have their full size."""
        count, half = self.length + 1, self._keys
        keys = random.permuted(np.tile(np.arange(half), (count, 1)), axis=1)
        values = random.permuted(np.tile(np.arange(half, self.vocab - 1), (count, 1)), axis=1)
        key_sizes = np.full(count, self.key_size) if fixed else random.integers(1, self.key_size + 1, count)
        value_sizes = random.integers(1, self.value_size + 1, count)
        for key, value, k, v in zip(keys, values, key_sizes, value_sizes, strict=True):
            yield tuple(key[:k].tolist()), tuple(value[:v].tolist())

    def predict(self, prefix: np.ndarray) -> int:
        content = prefix[prefix != self.vocab - 1].tolist()
        runs = [tuple(run) for _, run in groupby(content, key=lambda i: i < self._keys)]
        said = 0 if len(runs) % 2 else len(runs[-1])  # of the value that has begun
        key = runs[-1] if len(runs) % 2 else runs[-2]
        known = dict(zip(runs[: -2 if said else -1 : 2], runs[1 : -1 if said else None : 2], strict=True))
        value = known.get(key, ())
        return value[said] if said < len(value) else 0


def _say(key, value, known: bool, ids: list[int], scored: list[bool]) -> None:
    """Put a pair behind the row so far; its value is asked for where the key is known."""
    ids += (*key, *value)
    scored += [False] * len(key) + [known] * len(value)
