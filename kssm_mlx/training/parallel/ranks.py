"""The processes of one run, and what they say to each other through `mlx.distributed`.

    mlx.launch -n 2 -- kssm train RECIPE      two processes here; --hostfile: one on each of several machines

Each takes every step on its own rows of the batch; what they sum is the same bits in all of them, so that all
hold the same parameters. Rank 0 alone writes, and says what went wrong; `Settled` ends the others in silence.
MLX tells of a neighbour that is gone by a RuntimeError in what waits for it, once: a message that is queued
behind that one waits for ever. So each is received before the next is begun (waits.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from kssm_mlx.errors import CheckFailed, Interrupted, KssmError
from kssm_mlx.models.base import flatten
from kssm_mlx.training.parallel.waits import Waits, ended_by_sigterm

# Set by mlx.launch, Open MPI and MPICH. Without any of them nothing is initialised: MPI would be, if it is
# installed, in every process that trains alone.
STARTED_BY = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
BEHIND_RANK_0 = 5.0  # seconds
BACKENDS = ("[ring]", "[jaccl]", "[mpi]", "[nccl]")  # how their errors begin

T = TypeVar("T")


class RankLost(KssmError):
    """A process of the run is gone, and with it the run."""

    exit_code = 1


class Settled(KssmError):
    """The run has ended for a reason that another rank says."""

    def __init__(self, exit_code: int):
        super().__init__("another rank says what ended the run")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; group: MLX's, None where there is one process."""

    rank: int = 0
    size: int = 1
    group: Any = None
    waits: Waits = field(default_factory=Waits, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def take(self, rows: Any) -> Any:
        """This rank's share of arrays whose first axis is the rows of a batch, None among them."""
        if self.size == 1:
            return rows

        def share(a):
            if a is None:
                return None
            each = a.shape[0] // self.size
            return a[self.rank * each : (self.rank + 1) * each]

        return tree_map(share, rows)

    def join(self, rows: Any) -> Any:
        """The inverse of `take`: the rows of all ranks, in every one of them."""
        if self.size == 1:
            return rows

        def gather(a):
            if a is None:
                return None
            mx.eval(a)
            return self._gather(a)

        return tree_map(gather, rows)

    def sum(self, tree: Any) -> Any:
        """The tree summed over all ranks, leaf by leaf: one message for each type of its arrays."""
        if self.size == 1:
            return tree
        leaves = list(flatten(tree).values())
        summed = list(leaves)
        for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
            places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
            flat = mx.concatenate([leaves[i].reshape(-1) for i in places])
            mx.eval(flat)
            ends = np.cumsum([leaves[i].size for i in places]).tolist()
            parts = mx.split(self._sum(flat), ends[:-1])
            for i, part in zip(places, parts, strict=True):
                summed[i] = part.reshape(leaves[i].shape)
        following = iter(summed)
        return tree_map(lambda _: next(following), tree)

    def largest(self, value: int) -> int:
        """The largest of what the ranks say."""
        if self.size == 1:
            return value
        return max(np.array(self._gather(mx.array([value], mx.int32))).tolist())

    def gather(self, value: Any) -> list[Any]:
        """A plain value of each rank, by rank."""
        if self.size == 1:
            return [value]
        raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = np.array(self._gather(mx.array([raw.size], mx.int32)))
        padded = mx.array(np.pad(raw, (0, int(sizes.max()) - raw.size)))
        every = np.array(self._gather(padded)).reshape(self.size, -1)
        return [json.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=True)]

    def share(self, arrays: dict[str, mx.array] | None) -> dict[str, mx.array]:
        """Rank 0's arrays, bit for bit; the others give None."""
        if self.size == 1:
            return arrays or {}
        shapes = {
            name: [list(a.shape), str(a.dtype).rpartition(".")[2]] for name, a in (arrays or {}).items()
        }
        shared = {}
        for name, (shape, dtype) in self.gather(shapes)[0].items():
            empty = mx.zeros(shape, getattr(mx, dtype))
            own = arrays[name] if self.first and arrays else empty
            # As bytes, which a sum with zeros leaves as they are: of a float it would lose the sign of -0.
            raw = self._sum(own.reshape(-1).view(mx.uint8))
            shared[name] = raw.view(empty.dtype).reshape(shape)
            mx.eval(shared[name])
        return shared

    def _sum(self, array: mx.array) -> mx.array:
        return self.waits.receive(mx.distributed.all_sum(array, group=self.group))

    def _gather(self, array: mx.array) -> mx.array:
        return self.waits.receive(mx.distributed.all_gather(array, group=self.group))

    @contextlib.contextmanager
    def end_together(self) -> Iterator[None]:
        """All ranks end this block, or none goes on.

        Raises: on rank 0 the first error of a rank, which it names if it is another's; Settled on the others.
        """
        if self.size == 1:
            yield
            return
        own: KssmError | None = None
        try:
            yield
        except KssmError as e:
            own = e
        said = self.gather(own and [str(own), own.exit_code])
        failed = next((rank for rank, error in enumerate(said) if error), None)
        if failed is None:
            return
        message, code = said[failed]
        if not self.first:
            self._leave(code)
        if own:
            raise own
        error = KssmError(f"rank {failed}: {message}")
        error.exit_code = code
        raise error

    def in_turn(self, act: Callable[[], T]) -> T:
        """What `act` gives in this process, called when rank 0 has done it: it may find what that wrote.

        Raises: as `end_together`.
        """
        found: list[T] = []
        for turn in (True, False):
            with self.end_together():
                if self.first is turn:
                    found.append(act())
        return found[0]

    def require_same(self, what: str, facts: dict[str, Any]) -> None:
        """Raises: KssmError on rank 0 that names what another has otherwise, Settled on the others."""
        with self.end_together():
            for rank, theirs in enumerate(self.gather(facts)):
                if found := _list_differences(theirs, facts):
                    others = f"{'; '.join(found[:3])}{f' and {len(found) - 3} more' if found[3:] else ''}"
                    raise KssmError(f"rank {rank} has another {what} than rank {self.rank}: {others}")

    @contextlib.contextmanager
    def explain_lost_rank(self, describe: Callable[[], str]) -> Iterator[None]:
        """MLX's word that a rank is gone as an error of ours; describe: says what there is to go on from.

        Raises: RankLost on rank 0, Settled on the others, as for what all ranks find or are told
            alike: a failed check, a signal.
        """
        if self.size == 1:
            yield
            return
        say = partial(self._say_lost, describe)
        try:
            with ended_by_sigterm(self.waits, say), self.ignore_sigterm():
                yield
        except (CheckFailed, Interrupted) as e:
            if self.first:
                raise
            self._leave(e.exit_code)
        except RuntimeError as e:
            if not str(e).startswith(BACKENDS):
                raise
            if not self.first:
                raise Settled(RankLost.exit_code) from None
            raise RankLost(f"a process of this run is gone; {describe()}") from None

    @contextlib.contextmanager
    def ignore_sigterm(self) -> Iterator[None]:
        """SIGTERM is ignored as soon as a rank is gone: the launcher sends it to those that are left, which
        would end before `explain_lost_rank` comes to say why.
        """
        try:
            yield
        except RuntimeError as e:
            if self.size > 1 and str(e).startswith(BACKENDS):
                _set_sigterm(signal.SIG_IGN)
            raise

    def _say_lost(self, describe: Callable[[], str]) -> None:
        """As the command line would, of a process that cannot raise."""
        if self.first:
            os.write(2, f"kssm: a process of this run is gone; {describe()}\n".encode())

    def _leave(self, exit_code: int) -> NoReturn:
        """Raises: Settled, once rank 0 had time to say why: when it has ended, the launcher ends all."""
        _set_sigterm(signal.SIG_DFL)
        time.sleep(BEHIND_RANK_0)
        raise Settled(exit_code) from None


ALONE = Ranks()


def open_ranks() -> Ranks:
    """This process among those that a launcher started; `ALONE` where none did."""
    if not any(name in os.environ for name in STARTED_BY):
        return ALONE
    group = mx.distributed.init()
    return Ranks(group.rank(), group.size(), group) if group.size() > 1 else ALONE


def _set_sigterm(action: signal.Handlers) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, action)


def fingerprint(arrays: dict[str, mx.array]) -> dict[str, int]:
    """Name -> a number that the bits of an array give, in no order: cheap enough for every checkpoint."""
    bits = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
    sums = {name: mx.sum(a.reshape(-1).view(bits[a.dtype.size])) for name, a in arrays.items()}
    mx.eval(sums)
    return {name: int(np.array(value)) for name, value in sums.items()}


def _list_differences(theirs: dict[str, Any], own: dict[str, Any]) -> list[str]:
    keys = sorted(k for k in theirs.keys() | own.keys() if theirs.get(k) != own.get(k))
    return [f"{k} is {theirs.get(k)!r}, not {own.get(k)!r}" for k in keys]
