"""Tiled patterns, alone or interleaved: what comes next is what came one period ago in the same stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from kssm_mlx.data.tasks import ceilings
from kssm_mlx.data.tasks.base import Row, Task, make_generator
from kssm_mlx.data.tasks.ceilings import Bound
from kssm_mlx.errors import ConfigError

EXACT_FROM = 1024  # vocabulary from which a chance repeat within a pattern does not show in the closed form
ROWS = 2000  # of a Monte-Carlo bound: standard error of the accuracy 0.0004 at 128 targets


@dataclass(frozen=True)
class Toy(Task):
    """One stream: a pattern of low..high uniform tokens, repeated to the end."""

    vocab: int = 100
    length: int = 31
    low: int = 2
    high: int = 7
    jitter: float = 0.0
    broken: bool = False
    streams: ClassVar[int] = 1

    def __post_init__(self):
        periods, sizes = 1 <= self.low <= self.high, min(self.vocab, self.length) >= 2
        if not (periods and sizes and 0 <= self.jitter < 1):
            raise ConfigError(
                f"data.task: vocab {self.vocab}, length {self.length}, low {self.low}, high {self.high}, "
                f"jitter {self.jitter}; expected vocab and length from 2, 1 <= low <= high, 0 <= jitter < 1"
            )
        super().__post_init__()

    @property
    def vocab_size(self) -> int:
        return self.vocab + (self.jitter > 0)

    @property
    def chance(self) -> float:
        return 1 / self.vocab

    def sample(self, seed: int, split: str, index: int) -> Row:
        random = make_generator(seed, split, index)
        noise = random.random(self.length + 1) < self.jitter
        ids = np.full(self.length + 1, self.vocab)
        content = np.empty(int(np.sum(~noise)), int)
        for i in range(self.streams):
            content[i :: self.streams] = self._stream(random, content[i :: self.streams].size)
        ids[~noise] = content
        return Row(ids, ~noise & (np.arange(ids.size) > 0))

    def _stream(self, random: np.random.Generator, length: int) -> np.ndarray:
        if self.broken:
            return random.integers(0, self.vocab, length)
        pattern = random.integers(0, self.vocab, random.integers(self.low, self.high + 1))
        return np.resize(pattern, length)

    def split(self, ids: np.ndarray) -> list[np.ndarray]:
        """The streams of a row, noise left out."""
        content = ids[ids != self.vocab]
        return [content[i :: self.streams] for i in range(self.streams)]

    def predict(self, prefix: np.ndarray) -> int:
        streams = self.split(prefix)
        turn = sum(stream.size for stream in streams) % self.streams
        return 0 if self.broken else int(self._forecast(streams[turn]).token[-1])

    def _forecast(self, stream: np.ndarray) -> ceilings.Forecast:
        return ceilings.forecast(stream, self.low, self.high, self.vocab)

    def places(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """tail: where every period has been seen once; last: the last target."""
        content = ids != self.vocab
        within = (np.cumsum(content) - 1) // self.streams  # how many tokens of its stream came before
        last = content & (np.cumsum(content) == content.sum())
        return {"tail": (content & (within >= self.high))[1:], "last": last[1:]}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Without a tail where no stream outlasts the longest pattern."""
        tail = ("tail",) if self.length // self.streams >= self.high else ()
        return ("scored", *tail, "last")

    def _bound(self, metric: str) -> Bound:
        if self.broken:
            return Bound(self.chance, math.log(self.vocab))
        if self.jitter or self.vocab < EXACT_FROM:
            return sampled_bounds(self)[metric]
        ids, _ = self.sample(0, "validation", 0)
        chosen = self.places(ids)[metric] if metric != "scored" else np.ones(self.length, bool)
        before = (np.flatnonzero(chosen) + 1) // self.streams
        return ceilings.mean(
            ceilings.bound_tiled(m, self.low, self.high, self.vocab) for m in before.tolist()
        )

    def bayes(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(probability of the best guess, nats of the truth) per target, where it is not noise, else 0."""
        best, nats = np.zeros((2, ids.size))
        content = np.flatnonzero(ids != self.vocab)
        for i, stream in enumerate(self.split(ids)):
            said = self._forecast(stream)
            best[content[i :: self.streams]] = said.best[:-1]
            nats[content[i :: self.streams]] = -np.log(said.truth)
        return best[1:], nats[1:]


@dataclass(frozen=True)
class Interleaved(Toy):
    """Two streams taking turns, each with a pattern of its own: s[i] = s[i - 2p].

    broken: every token uniform, the negative control, nothing to learn. jitter: each token is noise (the id
    `vocab`) with this probability and does not advance the streams, so that no fixed lag helps.
    """

    vocab: int = 4096
    length: int = 128
    streams: ClassVar[int] = 2

    @property
    def baseline(self) -> float:
        """Chance; with jitter 0.16, what the best predictor that ignores content was measured to reach."""
        return max(self.chance, 0.16) if self.jitter else self.chance


@lru_cache(maxsize=32)
def sampled_bounds(task: Toy) -> dict[str, Bound]:
    """The bounds of all metrics by Monte Carlo, over the same ROWS rows of the generator."""
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {metric: [] for metric in task.metrics}
    for index in range(ROWS):
        ids, scored = task.sample(0, "validation", index)
        best, nats = task.bayes(ids)
        places = {"scored": np.True_, **task.places(ids)}
        for metric, found in rows.items():
            chosen = scored[1:] & places[metric]
            found.append((best[chosen], nats[chosen]))
    return {metric: ceilings.monte_carlo(found) for metric, found in rows.items()}
