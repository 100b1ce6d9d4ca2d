"""What a pass over a tensor's numbers tells (layer L3), measured in blocks so that little is in memory.

Natural scale: the root mean square of a matrix times the square root of its inputs, which is about 1 for a
matrix that passes signals on, whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kssm_mlx.weights.io.tensors import FLOATS, TensorInfo

BLOCK = 1 << 20  # numbers at a time
SQUARE = 512  # side of the corner of a matrix whose largest singular value is measured
SMALLEST_SQUARE = 64  # below, the largest singular value of a random matrix scatters too much


@dataclass(frozen=True)
class Summary:
    """low and high: over the finite numbers. edge: the largest singular value of a corner of the matrix over
    that of a random one of the same scale, None where it was not measured. rows: root mean square of each row
    of an embedding, None elsewhere. fresh: equal to what the model is initialised with, bit for bit.
    """

    dtype: str
    shape: tuple[int, ...]
    nans: int
    infinities: int
    low: float
    high: float
    rms: float
    edge: float | None = None
    rows: np.ndarray | None = None
    fresh: bool = False

    @property
    def constant(self) -> bool:
        return self.low == self.high and not self.nans and not self.infinities and math.prod(self.shape) > 1

    @property
    def zero(self) -> bool:
        return self.low == self.high == 0 and not self.nans and not self.infinities

    @property
    def is_matrix(self) -> bool:
        return sum(n > 1 for n in self.shape) >= 2

    @property
    def natural_scale(self) -> float:
        return self.rms * math.sqrt(math.prod(self.shape[1:]))


def summarise(info: TensorInfo, stored: np.ndarray, *, embedding: bool = False) -> Summary:
    """The summary of one tensor, `stored` as `TensorInfo.map` gives it."""
    nans = infinities = 0
    low, high, squares, rows = math.inf, -math.inf, 0.0, []
    for block in blocks(info, stored):
        finite = block
        with np.errstate(over="ignore", invalid="ignore"):
            square = float(np.vdot(block, block))
        if not math.isfinite(square):
            nans += int(np.isnan(block).sum())
            infinities += int(np.isinf(block).sum())
            finite = block[np.isfinite(block)].astype(np.float64)
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            squares += float(np.vdot(finite, finite))
        if embedding:
            rows.append(np.sqrt(np.einsum("vd,vd->v", block, block) / block.shape[1]))
    if low > high:  # nothing finite
        low = high = math.nan
    rms = math.sqrt(squares / max(1, info.size - nans - infinities))
    edge = None if embedding or nans or infinities else _edge(info, stored)
    norms = np.concatenate(rows) if rows else None
    return Summary(info.dtype, info.shape, nans, infinities, low, high, rms, edge, norms)


def blocks(info: TensorInfo, stored: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers as float32 (integers and float64 as float64), some rows at a time. Shapes: [rows, n]."""
    if not info.size:
        return
    array = stored.reshape(info.shape[0], -1) if len(info.shape) > 1 else stored.reshape(-1, 1)
    step = max(1, BLOCK // max(1, array.shape[1]))
    for i in range(0, array.shape[0], step):
        yield numbers(info.dtype, array[i : i + step])


def numbers(dtype: str, stored: np.ndarray) -> np.ndarray:
    """Stored numbers as floats that numpy computes with."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(stored, np.float32 if dtype in FLOATS[:3] else np.float64)


def _edge(info: TensorInfo, stored: np.ndarray) -> float | None:
    """Largest singular value of the upper left corner over sigma (sqrt m + sqrt n), where that of a matrix of
    independent numbers ends; 1 or less for a random matrix, more for one that learned directions.

    Source: Marchenko & Pastur 1967; Martin & Mahoney 2021 for trained networks.
    """
    if info.dtype not in FLOATS or len(info.shape) != 2 or min(info.shape) < SMALLEST_SQUARE:
        return None
    corner = numbers(info.dtype, stored[:SQUARE, :SQUARE])
    sigma = math.sqrt(float(np.square(corner, dtype=np.float64).mean()))
    if not 0 < sigma < math.inf:
        return None
    corner = corner / np.float32(sigma)
    v = np.random.default_rng(0).standard_normal(corner.shape[1], np.float32)
    for _ in range(30):
        v = corner.T @ (corner @ (v / np.linalg.norm(v)))
    return math.sqrt(float(np.linalg.norm(v))) / sum(map(math.sqrt, corner.shape))
