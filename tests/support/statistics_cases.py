"""What the grids of statistics share: samples of every size, and a case of numbers that should be equal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

SIZES = (2, 3, 4, 7, 12, 40, 300)
SEEDS = range(5)
# A sample of n values; the last two have no spread, or one that is rounding.
SAMPLES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(0.3, 1, n),
    "far from zero": lambda rng, n: 1e4 + rng.normal(0, 0.1, n),
    "heavy tails": lambda rng, n: rng.standard_t(2, n),
    "no spread": lambda rng, n: np.full(n, 0.04),
    "rounding": lambda rng, n: np.full(n, 1.5) + rng.choice([0, 2.0**-51], n),
}
WITHOUT_SPREAD = ("no spread", "rounding")


SMALL = 1e-6  # a number below it is compared as if it were this large


class Case(NamedTuple):
    """name: of the sample and its size; ours, theirs: the same numbers in the same order."""

    name: str
    ours: Any
    theirs: Any

    @property
    def error(self) -> float:
        """The largest difference, relative to the size of the numbers; 0 where both have none (NaN)."""
        ours, theirs = (np.atleast_1d(np.asarray(x, np.float64)) for x in (self.ours, self.theirs))
        if ours.shape != theirs.shape or (np.isfinite(ours) != np.isfinite(theirs)).any():
            return math.inf
        finite = np.isfinite(theirs)
        if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
            return math.inf
        gaps = np.abs(ours - theirs)[finite] / np.maximum(np.abs(theirs[finite]), SMALL)
        return float(gaps.max(initial=0.0))


def samples(sizes=SIZES) -> Iterator[tuple[str, str, int, np.random.Generator]]:
    """The name of a case, its kind, its size and a generator."""
    for (number, kind), n, seed in itertools.product(enumerate(SAMPLES), sizes, SEEDS):
        yield f"{kind}, n {n}, seed {seed}", kind, n, np.random.default_rng([number, n, seed])
