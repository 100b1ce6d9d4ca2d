"""One tensor in one file: where it is and how to see it without reading the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

# Our names (MLX's) of what is stored, as numpy sees the bytes; numpy has no bfloat16.
STORED = {
    **{
        f"{kind}{bits}": np.dtype(f"<{kind[0]}{bits // 8}")
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "bfloat16": np.dtype("<u2"),
    "bool_": np.dtype("?"),
}
MOST_DIMENSIONS = 8  # of any tensor of any architecture here, with room to spare
FLOATS = ("float32", "float16", "bfloat16", "float64")


def itemsize(dtype: str) -> int:
    return STORED[dtype].itemsize


@dataclass(frozen=True)
class TensorInfo:
    """dtype: MLX's name; offset and nbytes: of its bytes in `file`; strides, in elements, where the bytes are
    not in row order.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def map(self) -> np.ndarray:
        """The stored numbers, memory-mapped and read only; bfloat16 as uint16. Drop it to unmap the file."""
        kind = STORED[self.dtype]
        if not self.size:
            return np.empty(self.shape, kind)
        # A plain view: memmap's own class costs time at every slice.
        flat = np.memmap(self.file, np.uint8, "r", self.offset, (self.nbytes,)).view(np.ndarray).view(kind)
        if self.strides is None:
            return flat.reshape(self.shape)
        steps = [s * kind.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)

    def array(self, stored: np.ndarray) -> mx.array:
        """What `map` gave, as an MLX array of its own, in memory."""
        array = mx.array(np.array(stored, order="C"))
        array = array.view(mx.bfloat16) if self.dtype == "bfloat16" else array
        mx.eval(array)
        return array


def row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of an array stored row by row."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
