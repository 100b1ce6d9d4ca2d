"""Mamba's scan: hoisted form against the recurrence on paper."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.ops.selective_scan import selective_scan, selective_scan_reference
from tests.support.recurrences import (
    MASKS,
    SHAPES,
    assert_chunk_invariant,
    assert_matches_float64,
    assert_same_function,
    masks,
    normal,
)

B, D, N = 3, 5, 4


def arguments(T):
    dt = 0.3 * mx.abs(normal(1, B, T, D))
    return (normal(0, B, T, D), dt, -mx.abs(normal(2, D, N)), normal(3, B, T, N), normal(4, B, T, N)), normal(
        5, B, D, N
    )


@pytest.mark.parametrize("T", SHAPES)
@pytest.mark.parametrize("kind", MASKS)
def test_is_the_recurrence_on_paper(T, kind):
    args, state = arguments(T)
    assert_same_function(selective_scan, selective_scan_reference, args, state, masks(kind, B, T))


@pytest.mark.parametrize("T", [33, 64, 101])
@pytest.mark.parametrize("kind", MASKS)
def test_a_long_sequence_in_parts_is_the_recurrence_on_paper(T, kind, monkeypatch):
    monkeypatch.setattr("kssm_mlx.ops.selective_scan.LONGEST", 32)
    args, state = arguments(T)
    assert_same_function(selective_scan, selective_scan_reference, args, state, masks(kind, B, T))


def oracle(x, dt, A, B, C, h):
    y = []
    for t in range(x.shape[1]):
        h = np.exp(dt[:, t, :, None] * A) * h + np.einsum("bd,bn->bdn", dt[:, t] * x[:, t], B[:, t])
        y.append(np.einsum("bdn,bn->bd", h, C[:, t]))
    return np.stack(y, 1), [h]


def test_gradient_is_the_float64_difference():
    assert_matches_float64(selective_scan, oracle, *arguments(13))


@pytest.mark.parametrize("cut", [1, 16, 20])
def test_state_hands_over_anywhere(cut):
    assert_chunk_invariant(selective_scan, *arguments(21), cut, (True, True, False, True, True))


def test_one_channel_one_state_by_hand():
    """h_1 = Δ B x, h_2 = e^{ΔA} h_1 + Δ B x; y = C h."""
    one = mx.ones((1, 2, 1))
    y, h = selective_scan(one, 0.5 * one, mx.array([[-2.0]]), 3 * one, 4 * one)
    first, second = 1.5, np.exp(-1) * 1.5 + 1.5
    np.testing.assert_allclose(y.flatten().tolist(), [4 * first, 4 * second], rtol=1e-6)
    np.testing.assert_allclose(h.item(), second, rtol=1e-6)


def test_half_precision_inputs_keep_an_fp32_state():
    args, _ = arguments(9)
    y, state = selective_scan(*(x.astype(mx.bfloat16) for x in args))
    assert y.dtype == state.dtype == mx.float32


def test_memory_of_a_gradient_is_chunks_not_all_states(repeatable_peak):
    """All states of this scan are 16 MB, and differentiating a loop keeps several such arrays."""
    x, dt, A, b, c = (
        0.1 * normal(i, *s) for i, s in enumerate([(1, 512, 512)] * 2 + [(512, 16)] + [(1, 512, 16)] * 2)
    )
    loss = lambda x: selective_scan(x, mx.abs(dt), -mx.abs(A), b, c)[0].sum()  # noqa: E731
    mx.eval(x, dt, A, b, c)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(loss)(x))
    assert mx.get_peak_memory() - held < 512 * 512 * 16 * 4


def test_a_reset_leaves_exactly_nothing_of_a_huge_state():
    args, state = arguments(4)
    resets = mx.array([[False, True, False, False]] * B)
    clean, huge = (selective_scan(*args, s, resets=resets)[0] for s in (state, 1e20 * state))
    np.testing.assert_array_equal(np.array(clean[:, 1:]), np.array(huge[:, 1:]))
