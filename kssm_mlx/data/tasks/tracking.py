"""Tasks of state tracking: at every place the state that the tokens read so far have led to.

The label is dense: every place has a target, and none is the next token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from kssm_mlx.data.tasks.base import Labelled, Row, make_generator
from kssm_mlx.data.tasks.groups import Group, make_group
from kssm_mlx.errors import ConfigError


@dataclass(frozen=True)
class Dense(Labelled):
    """A label at every place."""

    prefixes: ClassVar[bool] = True

    def _row(self, inputs: np.ndarray) -> Row:
        """Shapes: inputs [L]."""
        ids = np.append(inputs, 0)
        return Row(ids, np.arange(ids.size) > 0)


@dataclass(frozen=True)
class WordProblem(Dense):
    """g_1 ... g_T of a group; after each, the product g_1 ... g_t of those so far.

    alphabet: uniform from all elements, or from the generators (`groups.make_group`) and the identity.
    others: share of the letters that are drawn from all elements instead, beside an alphabet of generators:
        what a model has learned of the few tells it what the others do.
    Source: Barrington 1989: the word problem of A5 is complete for NC1.
    """

    group: str = "S3"
    alphabet: Literal["all", "generators"] = "all"
    others: float = 0.0

    def __post_init__(self):
        make_group(self.group)
        if not 0 <= self.others <= 1:
            raise ConfigError(f"others {self.others} of the letters; expected a share from 0 to 1")
        if self.others and self.alphabet == "all":
            raise ConfigError(f'others = {self.others} has no effect on alphabet = "all"; take "generators"')
        super().__post_init__()

    @property
    def _group(self) -> Group:
        return make_group(self.group)

    @property
    def letters(self) -> np.ndarray:
        """The elements that the alphabet has."""
        group = self._group
        return np.arange(group.order) if self.alphabet == "all" else np.unique([0, *group.generators])

    @property
    def frequencies(self) -> np.ndarray:
        """How probable each element is at a place of the input. Shapes: [order]."""
        order, letters = self.vocab_size, self.letters
        return (1 - self.others) * np.isin(np.arange(order), letters) / letters.size + self.others / order

    @property
    def vocab_size(self) -> int:
        return self._group.order

    @property
    def chance(self) -> float:
        """Of a guess by the place alone: after few generators few products are possible."""
        return _best_guess(self.group, tuple(self.frequencies.tolist()), self.length)

    def sample(self, seed: int, split: str, index: int) -> Row:
        letters, rng = self.letters, make_generator(seed, split, index)
        drawn = letters[rng.integers(0, letters.size, self.length)]
        if self.others:
            other = rng.random(self.length) < self.others
            drawn = np.where(other, rng.integers(0, self.vocab_size, self.length), drawn)
        return self._row(drawn)

    def answers(self, ids: np.ndarray) -> np.ndarray:
        table, products = self._group.table, np.zeros_like(ids)
        for t in range(1, ids.shape[-1]):
            products[..., t] = table[products[..., t - 1], ids[..., t - 1]]
        return products


@lru_cache(maxsize=64)
def _best_guess(group: str, frequencies: tuple[float, ...], length: int) -> float:
    """The mean over the places of the probability of the likeliest product, of letters so frequent."""
    table, total = make_group(group).table, 0.0
    likely = np.eye(1, len(table))[0]
    for _ in range(length):
        after = np.zeros_like(likely)
        for letter in np.flatnonzero(frequencies):  # right multiplication is a permutation of the elements
            after[table[:, letter]] += frequencies[letter] * likely
        likely, total = after, total + after.max()
    return float(total / length)


@dataclass(frozen=True)
class Parity(Dense):
    """Uniform bits; after each, whether the ones so far are odd: the word problem of C2."""

    @property
    def vocab_size(self) -> int:
        return 2

    @property
    def chance(self) -> float:
        return 0.5

    def sample(self, seed: int, split: str, index: int) -> Row:
        return self._row(make_generator(seed, split, index).integers(0, 2, self.length))

    def answers(self, ids: np.ndarray) -> np.ndarray:
        odd = np.zeros_like(ids)
        odd[..., 1:] = np.cumsum(ids[..., :-1], axis=-1) % 2
        return odd


@dataclass(frozen=True)
class Dyck(Dense):
    """Brackets of several kinds, nested `depth` deep at most; after each, which kind is open innermost.

    Ids 0 .. kinds - 1 open and kinds .. 2 kinds - 1 close; 2 kinds is the label where none is open. A bracket
    is opened or closed as often, where both can be.
    """

    kinds: int = 2
    depth: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.kinds < 2 or self.depth < 1:
            raise ConfigError(
                f"data.task: kinds {self.kinds}, depth {self.depth}; expected two kinds or more, since of "
                "one the depth is known from the place, and a depth from 1"
            )

    @property
    def vocab_size(self) -> int:
        return 2 * self.kinds + 1

    @property
    def chance(self) -> float:
        """Of a guess by the place alone: at odd ones something is open."""
        return _best_depth_guess(self.kinds, self.depth, self.length)

    def sample(self, seed: int, split: str, index: int) -> Row:
        random, open_now, ids = make_generator(seed, split, index), [], []
        kinds = random.integers(0, self.kinds, self.length).tolist()
        for kind, opens in zip(kinds, (random.random(self.length) < 0.5).tolist(), strict=True):
            if not open_now or (opens and len(open_now) < self.depth):
                open_now.append(kind)
                ids.append(kind)
            else:
                ids.append(self.kinds + open_now.pop())
        return self._row(np.array(ids))

    def answers(self, ids: np.ndarray) -> np.ndarray:
        rows = ids.reshape(-1, ids.shape[-1])
        stack, depth, labels = np.zeros((len(rows), self.depth + 1), int), np.zeros(len(rows), int), []
        stack[:, 0] = 2 * self.kinds  # below everything
        each = np.arange(len(rows))
        for token in rows[:, :-1].T:
            opens = token < self.kinds
            depth = depth + np.where(opens, 1, -1)
            stack[each[opens], depth[opens]] = token[opens]
            labels.append(stack[each, depth])
        return np.stack([np.zeros(len(rows), int), *labels], axis=1).reshape(ids.shape)


@lru_cache(maxsize=64)
def _best_depth_guess(kinds: int, depth: int, length: int) -> float:
    """The mean over the places of the probability of the likeliest label."""
    at, total = np.eye(1, depth + 1)[0], 0.0
    up = np.array([1.0, *[0.5] * (depth - 1), 0.0])
    for _ in range(length):
        opened, closed = at * up, at * (1 - up)
        at = np.append(0, opened[:-1]) + np.append(closed[1:], 0)
        total += max(at[0], (1 - at[0]) / kinds)
    return float(total / length)
