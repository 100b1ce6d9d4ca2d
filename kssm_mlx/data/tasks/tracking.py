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
    Source: Barrington 1989: the word problem of A5 is complete for NC1.
    """

    group: str = "S3"
    alphabet: Literal["all", "generators"] = "all"

    def __post_init__(self):
        make_group(self.group)
        super().__post_init__()

    @property
    def _group(self) -> Group:
        return make_group(self.group)

    @property
    def letters(self) -> np.ndarray:
        """The elements that occur in the input."""
        group = self._group
        return np.arange(group.order) if self.alphabet == "all" else np.unique([0, *group.generators])

    @property
    def vocab_size(self) -> int:
        return self._group.order

    @property
    def chance(self) -> float:
        """Of a guess by the place alone: after few generators few products are possible."""
        return _best_guess(self.group, tuple(self.letters.tolist()), self.length)

    def sample(self, seed: int, split: str, index: int) -> Row:
        letters = self.letters
        drawn = make_generator(seed, split, index).integers(0, letters.size, self.length)
        return self._row(letters[drawn])

    def answers(self, ids: np.ndarray) -> np.ndarray:
        table, products = self._group.table, np.zeros_like(ids)
        for t in range(1, ids.shape[-1]):
            products[..., t] = table[products[..., t - 1], ids[..., t - 1]]
        return products


@lru_cache(maxsize=64)
def _best_guess(group: str, letters: tuple[int, ...], length: int) -> float:
    """The mean over the places of the probability of the likeliest product, of uniform letters."""
    table, total = make_group(group).table, 0.0
    likely = np.eye(1, len(table))[0]
    for _ in range(length):
        after = np.zeros_like(likely)
        for letter in letters:  # right multiplication is a permutation of the elements
            after[table[:, letter]] += likely / len(letters)
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
