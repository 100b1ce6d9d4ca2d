"""RWKV-4's weighted average against the recurrence on paper."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.ops.wkv4 import WKV4State, empty_state, wkv4, wkv4_reference
from tests.support.recurrences import (
    MASKS,
    SHAPES,
    assert_chunk_invariant,
    assert_matches_float64,
    assert_same_function,
    masks,
    normal,
)

B, C = 3, 5


def arguments(T):
    state = WKV4State(normal(4, B, C), mx.abs(normal(5, B, C)), normal(6, B, C))
    return (-mx.exp(normal(0, C)), normal(1, C), 2 * normal(2, B, T, C), normal(3, B, T, C)), state


def sums(state):
    """What the state stands for: the pair (num, den, max) is one of many with the same sums."""
    return [state.num * mx.exp(state.max), state.den * mx.exp(state.max)]


@pytest.mark.parametrize("T", SHAPES)
@pytest.mark.parametrize("kind", MASKS)
def test_is_the_recurrence_on_paper(T, kind):
    args, state = arguments(T)
    assert_same_function(wkv4, wkv4_reference, args, state, masks(kind, B, T), sums)


def oracle(w, u, k, v, num, den, m):
    """The sums without any stabiliser, which float64 can afford for small keys."""
    num, den, y = num * np.exp(m), den * np.exp(m), []
    for t in range(k.shape[1]):
        now, bonus = np.exp(k[:, t]), np.exp(u + k[:, t])
        y.append((num + bonus * v[:, t]) / (den + bonus))
        num, den = np.exp(w) * num + now * v[:, t], np.exp(w) * den + now
    return np.stack(y, 1), [num, den]


def test_gradient_is_the_float64_difference():
    assert_matches_float64(wkv4, oracle, *arguments(13), sums)


@pytest.mark.parametrize("cut", [1, 16, 20])
def test_state_hands_over_anywhere(cut):
    assert_chunk_invariant(wkv4, *arguments(21), cut, (False, False, True, True))


@pytest.mark.parametrize("size", [300.0, -300.0])
def test_huge_keys_stay_finite_forward_and_backward(size):
    (w, u, k, v), _ = arguments(20)
    loss = lambda k: wkv4(w, u, k, v)[0].sum()  # noqa: E731
    assert mx.isfinite(loss(size + 30 * k)).item()
    assert mx.isfinite(mx.grad(loss)(size + 30 * k)).all().item()


def test_an_empty_state_is_no_state():
    (w, u, k, v), _ = arguments(7)
    np.testing.assert_array_equal(
        np.array(wkv4(w, u, k, v)[0]), np.array(wkv4(w, u, k, v, empty_state(B, C))[0])
    )
