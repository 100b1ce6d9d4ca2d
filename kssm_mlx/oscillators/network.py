"""Who listens to whom: fields of networks, for `kuramoto.Phases`.

A network with couplings A (row i listens) moves as theta_i' = omega_i + sum_j A_ij sin(theta_j - theta_i),
which is the field h_i = 1/2 sum_j A_ij exp(i theta_j). Each form below is that sum at its own cost:

    matrix    O(N^2)   any A
    low_rank  O(N r)   A = U V^T, never formed
    ring      O(N P)   A_ij depends on the distance i - j alone, up to P
    blocks    O(N)     G equal groups, each coupled to the mean of each

Shapes: cos, sin [..., N] unless said.
Source: Rodrigues, Peron, Ji & Kurths 2016 (review); Abrams et al. 2008 (blocks with lag).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from kssm_mlx.oscillators.kuramoto import Field, turn
from kssm_mlx.oscillators.order import Pair, mean_vector


def matrix(cos: mx.array, sin: mx.array, A: mx.array) -> Pair:
    """Any couplings. Shapes: A [N, N], row i listens to column j.

    Truth: A = K/N everywhere is `mean_field`; a symmetric A keeps the mean frequency.
    """
    return cos @ A.T / 2, sin @ A.T / 2


def low_rank(cos: mx.array, sin: mx.array, U: mx.array, V: mx.array) -> Pair:
    """Couplings A = U V^T of rank r: V reads r sums, U writes them back. Shapes: U, V [N, r]."""
    return cos @ V @ U.T / 2, sin @ V @ U.T / 2


def ring(cos: mx.array, sin: mx.array, weights: mx.array) -> Pair:
    """Symmetric couplings around a ring: weights[p - 1] from both neighbours at distance p.

    Shapes: weights [P], 2 P < N.
    """

    def reach(u: mx.array) -> mx.array:
        total = mx.zeros_like(u)
        for p in range(1, weights.shape[0] + 1):
            total = total + weights[p - 1] * (mx.roll(u, p, -1) + mx.roll(u, -p, -1))
        return total / 2

    return reach(cos), reach(sin)


def blocks(cos: mx.array, sin: mx.array, K: mx.array) -> Pair:
    """G groups of N, coupled through their means: h_g = 1/2 sum_g' K_gg' Z_g'.

    Shapes: cos, sin [..., G, N], K [G, G].
    Truth: two groups with lag hold a chimera, one locked and one not (`theory.chimera`).
    """
    x, y = mean_vector(cos, sin)
    return K @ x / 2, K @ y / 2


@dataclass(frozen=True)
class Lagged:
    """Any field with a phase lag, sin(theta_j - theta_i - alpha). Parameters: alpha, then the field's own."""

    field: Field

    def __call__(self, cos: mx.array, sin: mx.array, alpha: mx.array, *parameters: mx.array) -> Pair:
        return turn(self.field(cos, sin, *parameters), -alpha)
