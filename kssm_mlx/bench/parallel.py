"""What several processes that train one model send each other in a step, and what that costs.

    seconds of an all-reduce of S bytes among N on a ring = 2 (N - 1) latency + 2 (N - 1) / N  S / rate

Each of N pieces goes round the ring twice but for a step, once to be summed and once to be known (Patarasuk
and Yuan 2009, Bandwidth optimal all-reduce algorithms, section 3).
"""

from __future__ import annotations

import time
from typing import NamedTuple

import mlx.core as mx

from kssm_mlx.models.base import LanguageModel, flatten
from kssm_mlx.training.parallel.ranks import Ranks
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step

SMALL, LARGE, TURNS = 64, 1 << 22, 8  # numbers of fp32; times each is taken


class Link(NamedTuple):
    """latency: seconds of a step of the ring; rate: bytes per second between neighbours."""

    latency: float
    rate: float


class Together(NamedTuple):
    """A step of one rank. message: bytes that are summed; sent: bytes it sends for that on a ring; seconds:
    of the step, waiting among them: in messages, others' lateness included.
    """

    processes: int
    parameters: int
    messages: float
    message: float
    sent: float
    seconds: float
    waiting: float

    @property
    def share(self) -> float:
        """Of its time that a step spends in messages."""
        return self.waiting / self.seconds


def predict_all_reduce(size: float, processes: int, link: Link) -> float:
    """Seconds; see above."""
    steps = 2 * (processes - 1)
    return steps * link.latency + steps / processes * size / link.rate


def measure_link(ranks: Ranks) -> Link:
    """From the medians of a small message and a large one, which the formula turns into latency and rate."""
    steps = 2 * (ranks.size - 1)
    small, large = (time_message(size, ranks) for size in (SMALL, LARGE))
    # Bytes that pass between neighbours; the difference of the two takes latency out.
    moved = steps / ranks.size * 4 * (LARGE - SMALL)
    return Link(small / steps, moved / max(large - small, 1e-9))


def measure_together(model: LanguageModel, train: Train, ranks: Ranks) -> Together:
    """Steps of this recipe on tokens of no meaning, after one that compiles."""
    rows = train.batch_size // ranks.size
    tokens = mx.random.randint(
        0, model.args.vocab_size, (rows, train.context + 1), key=mx.random.key(ranks.rank)
    )
    step, state, waits = make_step(model, train, ranks=ranks), initial_state(model, train), ranks.waits
    # The first turn compiles; what is counted begins behind it.
    begun = (0.0, 0, 0, 0.0)
    for turn in range(TURNS + 1):
        state, metrics = step(state, tokens, None)
        mx.eval(state, metrics)
        if turn == 0:
            ranks.largest(0)  # all have compiled
            begun = (time.perf_counter(), waits.messages, waits.bytes, waits.seconds)
    now = (time.perf_counter(), waits.messages, waits.bytes, waits.seconds)
    seconds, messages, size, waiting = ((b - a) / TURNS for a, b in zip(begun, now, strict=True))
    sent = 2 * (ranks.size - 1) / ranks.size * size
    parameters = sum(a.size for a in flatten(state.params).values())
    return Together(ranks.size, parameters, messages, size, sent, seconds, waiting)


def time_message(size: int, ranks: Ranks) -> float:
    """Seconds to sum `size` numbers of fp32 over the ranks, begun by all at once: the median."""
    message, times = mx.ones(size), []
    mx.eval(message)
    for _ in range(TURNS):
        ranks.largest(0)
        began = time.perf_counter()
        ranks.sum([message])
        times.append(time.perf_counter() - began)
    return sorted(times)[TURNS // 2]
