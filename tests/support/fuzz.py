"""Damaged and hostile files for every reader of the package: a value or a KssmError, and nothing else.

python -m tests.support.fuzz INPUTS SEED [NAME ...]     as many inputs per reader; prints a line for each
"""

from __future__ import annotations

import faulthandler
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from kssm_mlx.errors import KssmError
from tests.support.appetite import peak_resident
from tests.support.mutations import mutate
from tests.support.readers import READERS

LONGEST = 10.0  # seconds of CPU for one input
MEMORY = 200 << 20  # bytes, on top of four times the file


class Outcome(NamedTuple):
    """slowest: seconds of CPU of one input; memory: bytes that the process grew by over all of them."""

    inputs: int
    refused: int
    slowest: float
    memory: int


def fuzz(name: str, inputs: int, seed: int) -> Outcome:
    """Raises: AssertionError that names the input, which is kept, for anything but a value or a KssmError."""
    reader, rng = READERS[name], random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory(prefix="kssm-fuzz-") as temporary:
        target = reader.make(Path(temporary))
        good = target.read_bytes()
        reader.read(target)
        refused, slowest, before = 0, 0.0, peak_resident()
        for _ in range(inputs):
            raw = mutate(good, rng, reader.text)
            target.write_bytes(raw)
            began = time.process_time()
            refused += _refuses(name, target, raw)
            slowest = max(slowest, time.process_time() - began)
            if slowest > LONGEST:
                raise AssertionError(f"{name}: {slowest:.1f} s of CPU for {_keep(raw)}")
            if peak_resident() - before > 4 * len(raw) + MEMORY:
                raise AssertionError(f"{name}: {peak_resident() - before:,} bytes of memory for {_keep(raw)}")
    return Outcome(inputs, refused, slowest, peak_resident() - before)


def _refuses(name: str, target: Path, raw: bytes) -> bool:
    try:
        READERS[name].read(target)
    except KssmError as e:
        said = str(e)
        if "\n" in said.strip() or len(said) > 20_000:
            raise AssertionError(f"{name}: {len(said)} characters, {_keep(raw)}: {said[:300]}") from e
        return True
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        raise AssertionError(f"{name}: {type(e).__name__}: {e!s:.300} from {_keep(raw)}") from e
    return False


def _keep(raw: bytes) -> Path:
    with tempfile.NamedTemporaryFile(prefix="kssm-fuzz-failed-", delete=False) as f:
        f.write(raw)
    return Path(f.name)


def outcomes(inputs: int, seed: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """One after the other, each reader in a process of its own; "fault" says what was found, or is None."""
    for name in names or READERS:
        row = {"reader": name, "seed": seed, "inputs": inputs, "fault": None}
        with ProcessPoolExecutor(1, get_context("spawn"), faulthandler.enable) as process:
            try:
                done = process.submit(fuzz, name, inputs, seed).result()
                yield row | {
                    "refused": done.refused,
                    "slowest_seconds": round(done.slowest, 2),
                    "memory_mb": round(done.memory / (1 << 20), 1),
                }
            except AssertionError as e:
                yield row | {"fault": str(e)}
            except BrokenProcessPool:
                yield row | {"fault": f"{name}: the process died"}


if __name__ == "__main__":
    for row in outcomes(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]):
        print(row, flush=True)
