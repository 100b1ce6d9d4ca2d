"""Passages, runs of tokens or bytes of one length, as 64-bit numbers; and which of one side another has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kssm_mlx.data.shards import Ids, read_blocks

LOOKED_UP = 1 << 23  # passages that are looked for at once, 8 bytes each; more read the other side again


def hash_passages(ids: np.ndarray, length: int) -> np.ndarray:
    """A 64-bit hash of every run of `length` tokens (a power of two), by doubling: h(ab) = m h(a) + h(b)."""
    hashes, width = ids.astype(np.uint64), 1
    multipliers = np.random.default_rng(64).integers(1 << 62, 1 << 63, 16, dtype=np.uint64) * 2 + 1
    while width < length:
        hashes = hashes[:-width] * multipliers[width.bit_length()] + hashes[width:]
        width *= 2
    return hashes


def shared_passages(ids: Ids, others: Ids, length: int) -> Iterator[np.ndarray]:
    """Whether each passage of `ids` (every start, in order) occurs in `others`, as bool arrays of a bounded
    size.
    """
    for mine in read_blocks(ids, LOOKED_UP, length - 1):
        hashes = hash_passages(mine, length)
        wanted = np.unique(hashes)
        found = np.zeros(wanted.size, bool)
        for theirs in read_blocks(others, overlap=length - 1):
            known = np.sort(hash_passages(theirs, length))
            at = np.searchsorted(wanted, known).clip(max=wanted.size - 1)
            found[at[wanted[at] == known]] = True
        yield found[np.searchsorted(wanted, hashes)]
