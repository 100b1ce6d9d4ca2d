"""The token mix against a loop over tokens in float64, both forms: states, documents, padding, gradients."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.ops.token_mix import token_mix
from tests.support.recurrences import normal

B, T, D, C = 3, 21, 16, 4


def by_loop(x, mu, state, resets) -> np.ndarray:
    x, mu, before = (np.array(a, np.float64) for a in (x, mu, state))
    y = np.zeros((C, *x.shape))
    for t in range(x.shape[1]):
        before = np.where(np.array(resets)[:, t, None], 0, before)
        y[:, :, t] = x[:, t] + (before - x[:, t]) * mu[:, None]
        before = x[:, t]
    return y


def test_is_the_loop(form):
    x, mu, state, resets = normal(0, B, T, D), normal(1, C, D), normal(2, B, D), normal(3, B, T) > 1
    mixed, last = token_mix(x, mu, state, resets=resets)
    np.testing.assert_allclose(np.array(mx.stack(mixed)), by_loop(x, mu, state, resets), atol=1e-6)
    assert mx.array_equal(last, x[:, -1])


def test_the_state_carries_over_any_cut(form):
    x, mu = normal(0, B, T, D), normal(1, C, D)
    whole, _ = token_mix(x, mu)
    first, state = token_mix(x[:, :8], mu)
    second, _ = token_mix(x[:, 8:], mu, state)
    for y, a, b in zip(whole, first, second, strict=True):
        assert mx.array_equal(y, mx.concatenate([a, b], axis=1))


def test_the_state_is_the_last_valid_input_or_the_one_before(form):
    x, state = normal(0, B, T, D), normal(2, B, D)
    _, last = token_mix(x, normal(1, C, D), state, lengths=mx.array([5, 0, T]))
    assert mx.array_equal(last, mx.stack([x[0, 4], state[1], x[2, -1]]))


@pytest.mark.parametrize("count", [1, C])
def test_gradients_are_central_differences(form, count):
    """The mix is linear in x, in the state and in mu, so that differences of any size are exact."""
    given = [normal(0, 2, 19, 3), normal(1, count, 3), normal(2, 2, 3)]
    resets, pull = normal(3, 2, 19) > 1, normal(4, count, 2, 19, 3)
    loss = lambda x, mu, state: (mx.stack(token_mix(x, mu, state, resets=resets)[0]) * pull).sum()  # noqa: E731
    for i, slope in enumerate(mx.grad(loss, argnums=(0, 1, 2))(*given)):
        direction = normal(5 + i, *given[i].shape)
        up, down = (loss(*(g + s * direction if j == i else g for j, g in enumerate(given))) for s in (1, -1))
        np.testing.assert_allclose((slope * direction).sum().item(), ((up - down) / 2).item(), rtol=1e-4)
    assert not (mx.grad(loss, argnums=2)(*given) * resets[:, :1]).any()


def test_bf16_stays_bf16(form):
    x = normal(0, B, T, D).astype(mx.bfloat16)
    (y,), last = token_mix(x, normal(1, 1, D).astype(mx.bfloat16))
    assert y.dtype == last.dtype == mx.bfloat16
