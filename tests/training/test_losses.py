"""Cross-entropy: closed forms, padding, stability; in chunks the same value and gradients, less memory."""

import math

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.training.losses import (
    MOST_LOGITS,
    chunk_for,
    chunked_cross_entropy,
    chunked_token_scores,
    cross_entropy,
    split_rows,
    token_nats,
    token_scores,
)


def problem(rows=2, T=10, D=5, V=13, seed=0):
    keys = mx.random.split(mx.random.key(seed), 4)
    hidden = mx.random.normal((rows, T, D), key=keys[0])
    head = {"weight": mx.random.normal((V, D), key=keys[1]), "bias": mx.random.normal((V,), key=keys[2])}
    targets = mx.random.randint(0, V, (rows, T), key=keys[3])
    return hidden, head, targets


def project(hidden, head):
    return hidden @ head["weight"].T + head["bias"]


def test_uniform_logits_cost_ln_v_per_token():
    nats, count = cross_entropy(mx.zeros((2, 3, 17)), mx.zeros((2, 3), mx.int32))
    assert count.item() == 6 and nats.item() == pytest.approx(6 * math.log(17), rel=1e-6)


def test_equals_float64():
    hidden, head, targets = problem()
    logits = project(hidden, head)
    exact = np.array(logits, np.float64)
    exact = (
        np.log(np.exp(exact).sum(-1)) - np.take_along_axis(exact, np.array(targets)[..., None], -1)[..., 0]
    )
    np.testing.assert_allclose(np.array(token_nats(logits, targets)), exact, rtol=1e-5, atol=1e-6)


def test_large_logits_neither_overflow_nor_lose_the_gradient():
    logits = mx.array([[1e4, 0.0, -1e4]])
    value, slope = mx.value_and_grad(lambda x: cross_entropy(x, mx.array([1]))[0])(logits)
    assert value.item() == pytest.approx(1e4)
    np.testing.assert_allclose(np.array(slope), [[1.0, -1.0, 0.0]], atol=1e-6)


def test_padding_counts_for_nothing_in_value_count_and_gradient():
    hidden, head, targets = problem()
    padded = mx.where(mx.arange(10) < 6, targets, -1)
    logits = project(hidden, head)
    (nats, count), slope = mx.value_and_grad(lambda x: cross_entropy(x, padded))(logits)
    short, n = cross_entropy(logits[:, :6], targets[:, :6])
    assert (nats.item(), count.item()) == (pytest.approx(short.item(), rel=1e-6), n.item())
    assert mx.all(slope[:, 6:] == 0).item() and mx.any(slope[:, :6] != 0).item()


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_chunks_give_the_same_value_and_all_the_same_gradients(chunk, compiled):
    hidden, head, targets = problem()
    targets = mx.where(mx.arange(10) < 8, targets, -1)

    def whole(hidden, head):
        return cross_entropy(project(hidden, head), targets)

    def chunked(hidden, head):
        return chunked_cross_entropy(hidden, head, project, targets, chunk)

    transform = mx.compile if compiled else lambda f: f
    (a, n), (dh, dhead) = transform(mx.value_and_grad(whole, argnums=(0, 1)))(hidden, head)
    (b, k), (ch, chead) = transform(mx.value_and_grad(chunked, argnums=(0, 1)))(hidden, head)
    assert n.item() == k.item() and a.item() == pytest.approx(b.item(), rel=1e-6)
    for want, got in [(dh, ch), (dhead["weight"], chead["weight"]), (dhead["bias"], chead["bias"])]:
        assert want.shape == got.shape and want.dtype == got.dtype
        np.testing.assert_allclose(np.array(want), np.array(got), rtol=1e-4, atol=1e-6)


def test_an_outer_factor_reaches_the_gradient():
    hidden, head, targets = problem()

    def scaled(hidden):
        return 0.25 * chunked_cross_entropy(hidden, head, project, targets, 4)[0]

    def whole(hidden):
        return 0.25 * cross_entropy(project(hidden, head), targets)[0]

    np.testing.assert_allclose(
        np.array(mx.grad(scaled)(hidden)), np.array(mx.grad(whole)(hidden)), rtol=1e-4, atol=1e-6
    )


def test_chunks_never_hold_all_the_logits(repeatable_peak):
    hidden, head, targets = problem(rows=2, T=256, D=8, V=2000)  # the logits: 4 MB, each copy of them too

    def peak(loss) -> int:
        mx.eval(hidden, head, targets)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(mx.value_and_grad(loss, argnums=(0, 1))(hidden, head))
        return mx.get_peak_memory() - before

    whole = peak(lambda h, w: cross_entropy(project(h, w), targets))
    chunked = peak(lambda h, w: chunked_cross_entropy(h, w, project, targets, 16))
    assert whole > 4_000_000 and chunked < whole / 4


def test_rows_say_what_is_padding_and_what_is_only_read():
    inputs, targets = split_rows(mx.array([[3, -2 - 7, 5, -1]]))
    assert inputs.tolist() == [[3, 7, 5]] and targets.tolist() == [[-9, 5, -1]]


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_scores_in_chunks_are_the_scores(chunk):
    hidden, head, targets = problem()
    targets = mx.where(mx.arange(10) < 8, targets, -1)
    whole = token_scores(project(hidden, head), targets)
    parts = chunked_token_scores(hidden, lambda part: project(part, head), targets, chunk)
    np.testing.assert_allclose(np.array(parts), np.array(whole), rtol=1e-5)
    assert whole.shape == (2, 2, 10) and not mx.any(whole[..., 8:]).item()


def test_how_many_positions_have_their_logits_in_memory():
    assert chunk_for(2, 64, MOST_LOGITS // 128) is None
    assert chunk_for(2, 65, MOST_LOGITS // 128) == 64
    assert chunk_for(4, 8, MOST_LOGITS) == 1
