"""The short convolution against a loop over tokens: documents, padding, states, gradients."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.ops.conv import causal_conv
from tests.support.recurrences import MASKS, masks, normal

B, D, W = 3, 5, 4


def arguments(T):
    return normal(0, B, T, D), normal(1, D, W), normal(2, D), normal(3, B, W - 1, D)


def loop(x, weight, bias, state, resets=None, lengths=None):
    """y and the state after the last valid token, one row and token at a time."""
    T, W = x.shape[1], weight.shape[1]
    y, states = np.zeros_like(x), np.zeros_like(state)
    for b in range(len(x)):
        window = list(state[b])
        for t in range(T):
            if lengths is not None and t == lengths[b]:
                break
            if resets is not None and resets[b, t]:
                window = [np.zeros(x.shape[2])] * (W - 1)
            window.append(x[b, t])
            y[b, t] = bias + sum(weight[:, w] * window[w] for w in range(W))
            window = window[1:]
        states[b] = np.array(window).reshape(W - 1, -1)
    return y, states


def wide(*arrays):
    return [np.array(x, np.float64) for x in arrays]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("T", [1, 2, 3, 4, 17])
def test_is_the_loop(T, kind):
    mask = masks(kind, B, T)
    y, state = causal_conv(*arguments(T), **mask)
    expected, expected_state = loop(*wide(*arguments(T)), **{n: np.array(m) for n, m in mask.items()})
    valid = np.arange(T)[None] < np.array(mask.get("lengths", [T] * B))[:, None]
    np.testing.assert_allclose(np.array(y)[valid], expected[valid], atol=1e-5)
    np.testing.assert_allclose(state, expected_state, atol=1e-6)


def test_a_width_of_one_has_no_memory():
    x, weight = normal(0, B, 6, D), normal(1, D, 1)
    y, state = causal_conv(x, weight)
    assert mx.allclose(y, x * weight[:, 0]) and state.shape == (B, 0, D)


@pytest.mark.parametrize("cut", [1, 2, 3, 10])
def test_state_hands_over_anywhere(cut):
    x, weight, bias, state = arguments(11)
    y, end = causal_conv(x, weight, bias, state)
    y1, middle = causal_conv(x[:, :cut], weight, bias, state)
    y2, final = causal_conv(x[:, cut:], weight, bias, middle)
    np.testing.assert_array_equal(mx.concatenate([y1, y2], axis=1), y)
    np.testing.assert_array_equal(final, end)


def test_no_state_is_silence():
    x, weight, bias, _ = arguments(5)
    y, _ = causal_conv(x, weight, bias, mx.zeros((B, W - 1, D)))
    assert mx.array_equal(causal_conv(x, weight, bias)[0], y)


def test_a_document_that_begins_late_is_a_document_alone():
    x, weight, bias, state = arguments(9)
    resets = mx.arange(9)[None] == mx.array([0, 4, 8])[:, None]
    y, end = causal_conv(x, weight, bias, state, resets=resets)
    for b, start in enumerate([0, 4, 8]):
        alone, alone_end = causal_conv(x[b : b + 1, start:], weight, bias)
        np.testing.assert_array_equal(y[b, start:], alone[0])
        np.testing.assert_array_equal(end[b], alone_end[0])


@pytest.mark.parametrize("kind", MASKS)
def test_gradient_is_the_float64_difference(kind):
    mask = masks(kind, B, 7)
    known = {n: np.array(m) for n, m in mask.items()}
    valid = np.arange(7)[None] < known.get("lengths", np.full(B, 7))[:, None]

    def loss(x, weight, bias, state):
        y, end = causal_conv(x, weight, bias, state, **mask)
        return (mx.sin(y) * mx.array(valid)[..., None]).sum() + mx.cos(end).sum()

    def oracle(*args):
        y, end = loop(*args, **known)
        return (np.sin(y) * valid[..., None]).sum() + np.cos(end).sum()

    args = arguments(7)
    gradients = mx.grad(loss, argnums=(0, 1, 2, 3))(*args)
    for i, g in enumerate(gradients):
        way = np.random.default_rng(i).normal(size=args[i].shape)
        up, down = wide(*args), wide(*args)
        up[i], down[i] = up[i] + 1e-5 * way, down[i] - 1e-5 * way
        expected = (oracle(*up) - oracle(*down)) / 2e-5
        g = np.array(g, np.float64)
        assert g.shape == args[i].shape
        assert (g * way).sum() == pytest.approx(expected, abs=2e-5 * np.abs(g * way).sum())


def test_bf16_in_bf16_out():
    args = [x.astype(mx.bfloat16) for x in arguments(6)]
    y, state = causal_conv(*args)
    assert y.dtype == state.dtype == mx.bfloat16
    np.testing.assert_allclose(np.array(y.astype(mx.float32)), causal_conv(*arguments(6))[0], atol=0.15)
