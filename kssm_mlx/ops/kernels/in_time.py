"""Time cut into parts side by side: for a GPU that one prompt would not fill, for a graph of bounded size.

Every part runs twice: from an empty state, which says what map it is (a state in, a state out), and, once the
maps have been applied one after the other, from the state that really enters it. Twice the work, on as many
times more lanes as there are parts.
"""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx

from kssm_mlx.ops import gpu

# Lanes that keep a GPU busy, and the tokens below which a part is not worth its own launch. Reasoned from the
# number of cores of an M2 Ultra, not measured.
BUSY, LEAST = 16384, 256


def parts(T: int, lanes: int) -> int:
    """Into how many parts T tokens are cut; the few threads of a CPU are busy with any number of lanes."""
    if gpu.dialect() == "cpp":
        return 1
    return max(1, min(T // LEAST, BUSY // max(lanes, 1)))


def cut(x: mx.array, n: int, fill: float = 0) -> mx.array:
    """The parts as rows of a batch, padded to whole chunks. Shapes: [B, T, ...] -> [B n, L, ...]."""
    B, T = x.shape[:2]
    L = gpu.CHUNK * -(-T // (n * gpu.CHUNK))
    x = mx.pad(x, [(0, 0), (0, n * L - T)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
    return x.reshape(B * n, L, *x.shape[2:])


def join(x: mx.array, n: int, length: int) -> mx.array:
    """The inverse of `cut`, also for what is kept per chunk. Shapes: [B n, L, ...] -> [B, length, ...]."""
    return x.reshape(x.shape[0] // n, -1, *x.shape[2:])[:, :length]


def rows(x: mx.array, n: int) -> list[mx.array]:
    """What is kept once per part, part by part. Shapes: [B n, ...] -> n arrays [B, ...]."""
    x = x.reshape(-1, n, *x.shape[1:])
    return [x[:, i] for i in range(n)]


def batch(entering: Iterable[mx.array]) -> mx.array:
    """The inverse of `rows`."""
    x = mx.stack(list(entering), axis=1)
    return x.reshape(-1, *x.shape[2:])
