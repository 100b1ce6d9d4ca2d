"""Finite groups as tables: cyclic, dihedral, symmetric, alternating, and products of these.

Elements are numbered breadth first from the identity, 0, by multiplying with the generators in their order.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from kssm_mlx.errors import ConfigError

LARGEST = 720  # elements, as S6 has: the table and the model's vocabulary grow with them
_FACTOR = re.compile(r"([CDSA])(\d{1,3})")
_FEWEST = {"C": 2, "D": 3, "S": 2, "A": 3}

Permutation = tuple[int, ...]


class Group(NamedTuple):
    """table[i, j] is the element i j, first j and then i as permutations; generators are elements.

    Shapes: table int [n, n], generators int [k].
    """

    name: str
    table: np.ndarray
    generators: np.ndarray

    @property
    def order(self) -> int:
        return len(self.table)


@lru_cache(maxsize=16)
def make_group(name: str) -> Group:
    """The group of a name such as S3, C6, D4, A5 or C2xA4.

    Generators: of Cn a turn; of Dn a turn and a reflection; of Sn a turn of all n and the transposition of
    the first two; of An the 3-cycles (0 1 k); of a product those of its factors.
    Raises: ConfigError for another name, and for more than 720 elements.
    """
    factors = _parse_name(name)
    sizes = [n for _, n in factors]
    starts = [0, *accumulate(sizes)]
    generators = [
        _shift(own, at, starts[-1])
        for (kind, n), at in zip(factors, starts, strict=False)
        for own in _generators(kind, n)
    ]
    return _close(name, generators)


def _parse_name(name: str) -> list[tuple[str, int]]:
    """The factors of a product, [("C", 2), ("A", 4)]. Raises: ConfigError as `make_group`."""
    found = [_FACTOR.fullmatch(part) for part in name.split("x")]
    factors = [(m[1], int(m[2])) for m in found if m]
    if len(factors) < len(found) or any(n < _FEWEST[kind] for kind, n in factors):
        raise ConfigError(
            f"data.task.group: {name[:40]!r} is no group known here; expected C2, C3 ..., D3 ..., S2 ..., "
            "A3 ..., or a product of them such as C2xA4"
        )
    order = math.prod(_order(kind, n) for kind, n in factors)
    if order > LARGEST:
        raise ConfigError(
            f"data.task.group: {name} has {_format_order(order)} elements; expected at most {LARGEST}, "
            "as S6 has"
        )
    return factors


def _order(kind: str, n: int) -> int:
    return {"C": n, "D": 2 * n, "S": math.factorial(n), "A": math.factorial(n) // 2}[kind]


def _format_order(order: int) -> str:
    return str(order) if order < 10**9 else "more than 1e9"


def _generators(kind: str, n: int) -> list[Permutation]:
    """Of one factor, as permutations of its n points."""
    turn = (*range(1, n), 0)
    if kind == "A":
        return [_cycle(n, (0, 1, k)) for k in range(2, n)]
    if kind == "D":
        return [turn, tuple(-i % n for i in range(n))]
    return [turn] if kind == "C" or n == 2 else [turn, _cycle(n, (0, 1))]


def _cycle(n: int, points: Permutation) -> Permutation:
    """The permutation that takes each of `points` to the next of them."""
    following = dict(zip(points, (*points[1:], points[0]), strict=True))
    return tuple(following.get(i, i) for i in range(n))


def _shift(own: Permutation, at: int, n: int) -> Permutation:
    """A permutation of points that begin at `at`, as one of n points."""
    return (*range(at), *(at + i for i in own), *range(at + len(own), n))


def _close(name: str, generators: list[Permutation]) -> Group:
    """The table of what `generators` make: (i j) g = i (j g), column by column in the order of discovery."""
    elements = [tuple(range(len(generators[0])))]
    number, made_by, right = {elements[0]: 0}, [(0, 0)], []
    for i, element in enumerate(elements):  # grows meanwhile
        products = [tuple(element[p] for p in generator) for generator in generators]
        for g, product in enumerate(products):
            if product not in number:
                number[product] = len(elements)
                elements.append(product)
                made_by.append((i, g))
        right.append([number[product] for product in products])
    times = np.array(right)
    table = np.empty((len(elements), len(elements)), np.int64)
    table[:, 0] = np.arange(len(elements))
    for j, (parent, g) in enumerate(made_by[1:], start=1):
        table[:, j] = times[table[:, parent], g]
    return Group(name, table, times[0])
