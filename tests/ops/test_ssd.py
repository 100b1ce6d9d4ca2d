"""Mamba-2's chunked scan against the recurrence on paper."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.ops.selective_scan import selective_scan
from kssm_mlx.ops.ssd import ssd, ssd_reference
from tests.support.recurrences import (
    MASKS,
    SHAPES,
    assert_chunk_invariant,
    assert_matches_float64,
    assert_same_function,
    masks,
    normal,
)

B, H, P, G, N = 3, 4, 3, 2, 5


def arguments(T):
    dt = 0.3 * mx.abs(normal(1, B, T, H))
    moving = normal(3, B, T, G, N), normal(4, B, T, G, N)
    return (normal(0, B, T, H, P), dt, -mx.abs(normal(2, H)), *moving), normal(5, B, H, P, N)


@pytest.mark.parametrize("T", SHAPES)
@pytest.mark.parametrize("kind", MASKS)
def test_is_the_recurrence_on_paper(T, kind):
    args, state = arguments(T)
    assert_same_function(ssd, ssd_reference, args, state, masks(kind, B, T))


@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_chunk_size_does_not_change_the_result(chunk):
    args, state = arguments(33)
    for ours, theirs in zip(ssd(*args, state, chunk=chunk), ssd_reference(*args, state)):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=2e-5)


def oracle(x, dt, A, B, C, h):
    B, C = np.repeat(B, H // G, axis=2), np.repeat(C, H // G, axis=2)
    y = []
    for t in range(x.shape[1]):
        step = np.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
        h = np.exp(dt[:, t] * A)[..., None, None] * h + step
        y.append(np.einsum("bhpn,bhn->bhp", h, C[:, t]))
    return np.stack(y, 1), [h]


def test_gradient_is_the_float64_difference():
    assert_matches_float64(ssd, oracle, *arguments(13))


@pytest.mark.parametrize("cut", [1, 64, 69])
def test_state_hands_over_anywhere(cut):
    assert_chunk_invariant(ssd, *arguments(70), cut, (True, True, False, True, True))


def test_is_a_selective_scan_whose_channels_share_one_decay():
    (x, dt, A, b, c), _ = arguments(20)
    y, _ = ssd(x[:, :, :1], dt[..., :1], A[:1], b[:, :, :1], c[:, :, :1])
    A_wide = mx.broadcast_to(A[:1, None], (P, N))
    dt_wide = mx.broadcast_to(dt[..., :1], (B, 20, P))
    expected, _ = selective_scan(x[:, :, 0], dt_wide, A_wide, b[:, :, 0], c[:, :, 0])
    np.testing.assert_allclose(np.array(y[:, :, 0]), np.array(expected), atol=1e-5)


def test_a_decay_to_nothing_is_finite_forward_and_backward():
    (x, dt, A, b, c), state = arguments(70)
    loss = lambda dt: ssd(x, dt, 1e3 * A, b, c, state)[0].sum()  # noqa: E731
    assert mx.isfinite(mx.grad(loss)(dt)).all().item()
