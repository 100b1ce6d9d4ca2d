"""Several corpora in one run: which row of which batch is read from which, as a function of (seed, step).

Rows come in blocks of 1,024. Of each block a source has as many as its weight says, in an order that seed and
block give, so that the source of a row, and how many rows of that source were before it, is known without
reading on from the beginning. Held-out text is laid out in pieces that take turns by weight, so that its
beginning, which evaluations score, is the mixture as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kssm_mlx.errors import ConfigError, DataError

BLOCK = 1024  # rows
PIECE = 2048  # tokens of held-out text that stay together


class Part(NamedTuple):
    """The tokens of one source in the training ids, from `begin` up to `end`; epochs: how often they may be
    read, None as often as it comes.
    """

    name: str
    weight: float
    epochs: float | None
    begin: int
    end: int


class Rows(NamedTuple):
    """Shapes: sources [B], which part each row is of; ordinals [B], how many rows of it were before."""

    sources: np.ndarray
    ordinals: np.ndarray


def assign_rows(weights: tuple[float, ...], seed: int, first: int, count: int) -> Rows:
    """The sources of `count` rows from number `first` of a run on."""
    shares = apportion(weights)
    numbers = first + np.arange(count)
    sources, ordinals = np.empty(count, np.int64), np.empty(count, np.int64)
    for block in np.unique(numbers // BLOCK):
        order = _order_block(shares, seed, int(block))
        here = numbers // BLOCK == block
        places = numbers[here] % BLOCK
        sources[here] = order[places]
        before = np.array([np.count_nonzero(order[:place] == order[place]) for place in places])
        ordinals[here] = int(block) * np.array(shares)[order[places]] + before
    return Rows(sources, ordinals)


def apportion(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Rows of each source in a block, by largest remainders (Hamilton).

    Raises: ConfigError for a weight that would have none.
    """
    exact = np.array(weights) / sum(weights) * BLOCK
    rows = np.floor(exact).astype(int)
    for i in np.argsort(rows - exact, kind="stable")[: BLOCK - rows.sum()]:
        rows[i] += 1
    if not rows.all():
        least = min(weights)
        raise ConfigError(
            f"data.sources: a weight of {least:g} among {sum(weights):g} is less than one row of {BLOCK}: "
            "raise it"
        )
    return tuple(rows.tolist())


@lru_cache(maxsize=4)
def _order_block(shares: tuple[int, ...], seed: int, block: int) -> np.ndarray:
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, block, BLOCK])))
    return random.permutation(np.repeat(np.arange(len(shares)), shares))


def count_rows(weights: tuple[float, ...], seed: int, rows: int) -> np.ndarray:
    """How many of the first `rows` rows of a run are of each source. Shapes: [sources]."""
    shares = np.array(apportion(weights))
    blocks, rest = divmod(rows, BLOCK)
    last = np.bincount(assign_rows(weights, seed, blocks * BLOCK, rest).sources, minlength=shares.size)
    return blocks * shares + last


def refuse_many_epochs(parts: Sequence[Part], seed: int, rows: int, context: int) -> None:
    """Raises: DataError for a source that a run of `rows` rows would read more often than its epochs."""
    if not parts:
        return
    read = count_rows(tuple(part.weight for part in parts), seed, rows)
    for part, count in zip(parts, read.tolist(), strict=True):
        times = count * context / (part.end - part.begin)
        if part.epochs is not None and times > part.epochs:
            raise DataError(
                f"data.sources: {part.name} would be read {times:.3g} times, its epochs is {part.epochs:g}; "
                "lower its weight or train.steps, or raise its epochs"
            )


class Turn(NamedTuple):
    """A piece of held-out text: tokens of one source from `begin` up to `end`."""

    source: int
    begin: int
    end: int


def take_turns(pieces: Sequence[Sequence[tuple[int, int]]], weights: Sequence[float]) -> list[Turn]:
    """The pieces (begin, end) of each source in the order in which they have the weights while each has
    some.
    """
    places = []
    for source, own in enumerate(pieces):
        before = np.cumsum([0, *(end - begin for begin, end in own)]) / weights[source]
        places += [(place, source, *piece) for place, piece in zip(before.tolist(), own, strict=False)]
    return [Turn(*rest) for _, *rest in sorted(places)]


def cut_pieces(starts: np.ndarray, size: int) -> list[tuple[int, int]]:
    """(begin, end) of documents as pieces of at most `PIECE` tokens, none with tokens of two."""
    bounds = zip(starts.tolist(), [*starts[1:].tolist(), size], strict=True)
    return [(at, min(at + PIECE, end)) for begin, end in bounds for at in range(begin, end, PIECE)]


def name_sources(names: Sequence[str]) -> list[str]:
    """Short names, each once: a second "book.txt" is "book.txt-2"."""
    found: list[str] = []
    for name in names:
        same = sum(1 for other in names[: len(found)] if other == name)
        found.append(f"{name}-{same + 1}" if same else name)
    return found
