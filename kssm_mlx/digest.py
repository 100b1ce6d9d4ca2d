"""Names for content: sha256 of arrays and files, independent of how and in which order they are stored.

A file's own hash is only a transport check (two writers order the same tensors differently), so weights are
identified by per-tensor digests over dtype, shape and little-endian bytes, and by one root over the sorted
`name:digest` lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

Buffer: TypeAlias = bytes | memoryview | np.ndarray


def _bytes_and_dtype(array) -> tuple[bytes, str]:
    """Little-endian bytes and the dtype's name of an mlx or numpy array (numpy has no bfloat16)."""
    if isinstance(array, np.ndarray):
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return np.ascontiguousarray(little).tobytes(), array.dtype.name
    import mlx.core as mx

    name = str(array.dtype).removeprefix("mlx.core.")
    raw = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.ascontiguousarray(np.array(raw)).tobytes(), name


def tensor_digest(array) -> str:
    """sha256 over `dtype`, `shape` and the little-endian bytes of one mlx or numpy array."""
    data, dtype = _bytes_and_dtype(array)
    return stored_digest(dtype, array.shape, data)


def stored_digest(dtype: str, shape: Sequence[int], data: Buffer) -> str:
    """The same of a tensor given as its dtype's name, its shape and its little-endian bytes, uncopied."""
    h = hashlib.sha256(f"{dtype}|{','.join(map(str, shape))}|".encode())
    h.update(cast(memoryview, data))  # an array gives its buffer as well
    return h.hexdigest()


def root_digest(digests: Mapping[str, str]) -> str:
    """One sha256 for a set of named tensors, the same for every shard split and file order."""
    lines = "\n".join(f"{name}:{digest}" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
