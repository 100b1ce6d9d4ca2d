"""Every form of coupling is the sum over j of A_ij sin(theta_j - theta_i), written out."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.oscillators import network
from kssm_mlx.oscillators.kuramoto import Phases, mean_field, sakaguchi
from kssm_mlx.oscillators.order import coherence, group_order, local_order

N = 12
RNG = np.random.default_rng(0)
THETA, OMEGA = RNG.uniform(-np.pi, np.pi, (3, N)), RNG.normal(size=N)


def written_out(A, alpha=0.0):
    """theta_i' of a batch, the double sum in numpy."""
    difference = THETA[:, None, :] - THETA[:, :, None] - alpha
    return OMEGA + (A * np.sin(difference)).sum(axis=-1)


def ring_matrix(weights):
    distance = np.abs(np.arange(N)[:, None] - np.arange(N)[None, :])
    by_distance = np.zeros(N // 2 + 1)
    by_distance[1 : len(weights) + 1] = weights
    return by_distance[np.minimum(distance, N - distance)]


def case(name):
    """(system, its parameters, the same couplings as a matrix, lag)."""
    A, U, V, K = RNG.normal(size=(N, N)), RNG.normal(size=(N, 2)), RNG.normal(size=(N, 2)), 1.7
    weights = RNG.normal(size=3)
    return {
        "mean field": (Phases(mean_field), (K,), np.full((N, N), K / N), 0.0),
        "sakaguchi": (Phases(sakaguchi), (K, 0.4), np.full((N, N), K / N), 0.4),
        "matrix": (Phases(network.matrix), (A,), A, 0.0),
        "lagged matrix": (Phases(network.Lagged(network.matrix)), (0.4, A), A, 0.4),
        "low rank": (Phases(network.low_rank), (U, V), U @ V.T, 0.0),
        "ring": (Phases(network.ring), (weights,), ring_matrix(weights), 0.0),
    }[name]


@pytest.mark.parametrize("name", ["mean field", "sakaguchi", "matrix", "lagged matrix", "low rank", "ring"])
def test_field_is_the_double_sum(name):
    system, parameters, A, alpha = case(name)
    arrays = [mx.array(np.asarray(p, dtype=np.float32)) for p in (THETA, OMEGA, *parameters)]
    np.testing.assert_allclose(np.array(system(*arrays)), written_out(A, alpha), atol=2e-5)


def test_blocks_are_the_double_sum():
    groups, K = 3, RNG.normal(size=(3, 3))
    A = np.kron(K, np.ones((N // groups, N // groups))) / (N // groups)
    arrays = [x.astype(np.float32) for x in (THETA.reshape(3, groups, -1), OMEGA.reshape(groups, -1), K)]
    moved = Phases(network.blocks)(*map(mx.array, arrays))
    np.testing.assert_allclose(np.array(moved).reshape(3, N), written_out(A), atol=2e-5)


def test_local_and_group_order():
    theta, labels = mx.array(THETA.astype(np.float32)), mx.array([0, 1, 2] * 4)
    x, y = group_order(theta, labels, 3)
    for group in range(3):
        R = coherence(theta[:, group::3])
        np.testing.assert_allclose(np.hypot(np.array(x), np.array(y))[:, group], np.array(R), atol=1e-6)
    everyone = local_order(theta, mx.full((1, N), 7.0))
    np.testing.assert_allclose(
        np.hypot(*map(np.array, everyone))[:, 0], np.array(coherence(theta)), atol=1e-6
    )
