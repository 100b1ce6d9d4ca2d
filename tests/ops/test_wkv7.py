"""RWKV-7's delta rule, chunked, against the recurrence on paper."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.ops.wkv7 import unit_lower_inverse, wkv7, wkv7_reference
from tests.support.recurrences import (
    MASKS,
    SHAPES,
    assert_chunk_invariant,
    assert_matches_float64,
    assert_same_function,
    masks,
    normal,
)

B, H, K, V = 3, 2, 4, 3


def arguments(T):
    kappa = normal(7, B, T, H, K)
    kappa = kappa / mx.linalg.norm(kappa, axis=-1, keepdims=True)
    rate = mx.sigmoid(normal(8, B, T, H, K))
    log_w = -0.6065 * mx.sigmoid(normal(1, B, T, H, K))
    read, key, value = normal(0, B, T, H, K), normal(2, B, T, H, K), normal(3, B, T, H, V)
    return (read, log_w, key, value, -kappa, kappa * rate), normal(5, B, H, V, K)


@pytest.mark.parametrize("T", SHAPES)
@pytest.mark.parametrize("kind", MASKS)
def test_is_the_recurrence_on_paper(T, kind):
    args, state = arguments(T)
    assert_same_function(wkv7, wkv7_reference, args, state, masks(kind, B, T))


@pytest.mark.parametrize("chunk", [1, 5, 32, 64])
def test_chunk_size_does_not_change_the_result(chunk):
    args, state = arguments(70)
    for ours, theirs in zip(wkv7(*args, state, chunk=chunk), wkv7_reference(*args, state)):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=5e-5)


def oracle(r, log_w, k, v, a, b, S):
    y = []
    for t in range(r.shape[1]):
        rule = np.einsum("bhi,bhj->bhij", a[:, t], b[:, t]) + np.eye(K) * np.exp(log_w[:, t])[..., None]
        S = S @ rule + np.einsum("bhv,bhk->bhvk", v[:, t], k[:, t])
        y.append(np.einsum("bhvk,bhk->bhv", S, r[:, t]))
    return np.stack(y, 1), [S]


def test_gradient_is_the_float64_difference():
    assert_matches_float64(wkv7, oracle, *arguments(21))


@pytest.mark.parametrize("cut", [1, 16, 20])
def test_state_hands_over_anywhere(cut):
    assert_chunk_invariant(wkv7, *arguments(21), cut, (True,) * 6)


def test_full_rate_replaces_the_value_of_a_key():
    """Without decay, S κ = v after writing (κ, v) at rate 1: the delta rule overwrites, it does not add."""
    key = mx.array([1.0, 0, 0, 0]) * mx.ones((1, 3, 1, 4))
    values = normal(0, 1, 3, 1, 3)
    _, S = wkv7(key, mx.zeros_like(key), key, values, -key, key)
    np.testing.assert_allclose(np.array(S[0, 0, :, 0]), np.array(values[0, -1, 0]), atol=1e-6)


def test_a_repeated_key_loses_no_digits():
    """M = -1 below the diagonal is where a power series of (I - M)^-1 cancels."""
    L = 64
    M = -mx.tril(mx.ones((L, L)), -1)
    expected = np.eye(L) - np.eye(L, k=-1)
    np.testing.assert_allclose(np.array(unit_lower_inverse(M)), expected, atol=1e-6)


@pytest.mark.parametrize("L", [1, 2, 5, 16])
def test_the_triangular_inverse_and_its_gradient(L):
    M = mx.tril(normal(0, 2, L, L), -1)
    exact = lambda M: mx.linalg.inv(mx.eye(L) - M, stream=mx.cpu)  # noqa: E731
    np.testing.assert_allclose(np.array(unit_lower_inverse(M)), np.array(exact(M)), rtol=1e-3, atol=1e-4)
    X, G = np.array(exact(M), np.float64), np.cos(np.array(exact(M), np.float64))
    expected = X.swapaxes(-1, -2) @ G @ X.swapaxes(-1, -2)
    ours = mx.grad(lambda M: mx.sin(unit_lower_inverse(M)).sum())(M)
    np.testing.assert_allclose(np.array(ours), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
