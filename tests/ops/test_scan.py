"""The linear recurrence, its matrix form, and the helpers that cut time into chunks."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.ops.scan import (
    FEW_LANES,
    documents,
    from_chunks,
    in_chunks,
    linear_scan,
    linear_scan_reference,
    matrix_scan,
    max_plus_scan,
    tree_split,
)
from tests.support.recurrences import normal


def matrix_scan_reference(P, Q, S):
    states = []
    for t in range(Q.shape[0]):
        S = S @ P[t] + Q[t]
        states.append(S)
    return mx.stack(states)


def compare(fast, reference, args):
    loss = lambda op: lambda *a: mx.sin(op(*a)).sum()  # noqa: E731
    for op_fast, op_reference in (
        (fast, reference),
        *[(mx.grad(loss(fast), i), mx.grad(loss(reference), i)) for i in range(3)],
    ):
        ours, theirs = op_fast(*args), op_reference(*args)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("T", [1, 2, 19])
def test_linear_scan_and_its_gradients_are_the_loops(T):
    compare(linear_scan, linear_scan_reference, (normal(0, T, 3, 4), normal(1, T, 3, 4), normal(2, 3, 4)))


@pytest.mark.parametrize("T", [1, 2, 9])
def test_matrix_scan_and_its_gradients_are_the_loops(T):
    args = (0.4 * normal(0, T, 2, 3, 3), normal(1, T, 2, 5, 3), normal(2, 2, 5, 3))
    compare(matrix_scan, matrix_scan_reference, args)


def test_a_zero_factor_forgets_and_a_unit_factor_keeps():
    a, b = mx.array([1.0, 0.0, 1.0])[:, None], mx.array([0.0, 2.0, 0.0])[:, None]
    assert linear_scan(a, b, mx.array([7.0])).flatten().tolist() == [7.0, 2.0, 2.0]


def test_max_plus_scan_is_the_running_maximum_of_decaying_keys_and_has_no_gradient():
    w, k = -mx.abs(normal(0, 12, 5)), normal(1, 12, 5)
    m, expected = max_plus_scan(w, k, k[0]), np.array(k[0])
    for t in range(12):
        expected = np.maximum(expected + np.array(w[t]), np.array(k[t]))
        np.testing.assert_allclose(np.array(m[t]), expected, rtol=1e-6)
    assert mx.abs(mx.grad(lambda k: max_plus_scan(w, k, k[0]).sum())(k)).max().item() == 0


@pytest.mark.parametrize("T", [1, 8, 11])
def test_chunks_there_and_back(T):
    x = normal(0, 2, T, 3, 5)
    np.testing.assert_array_equal(np.array(from_chunks(in_chunks(x, 4), T)), np.array(x))


def test_documents_by_hand():
    causal, entered, leaves = documents(mx.array([False, True, False, True]), 4)
    assert causal.astype(mx.int32).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert entered.tolist() == [True, False, False, False]
    assert leaves.tolist() == [False, False, False, True]


@pytest.mark.parametrize("T", [1, 7, 8, 9, 64, 65, 200])
def test_tree_split_takes_time_apart(T):
    x = normal(0, T, 3)
    np.testing.assert_array_equal(np.array(mx.concatenate(tree_split(x))), np.array(x))


@pytest.mark.parametrize("lanes", [3, FEW_LANES])
@pytest.mark.parametrize("T", [9, 10, 50])
def test_few_lanes_run_side_by_side_and_many_one_after_the_other(T, lanes):
    a, b, h = mx.sigmoid(normal(0, T, lanes)), normal(1, T, lanes), normal(2, lanes)
    ours, theirs = linear_scan(a, b, h), linear_scan_reference(a, b, h)
    np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-5, rtol=1e-5)
    past = [h]
    for t in range(T):
        past.append(mx.maximum(past[-1] - a[t], b[t]))
    np.testing.assert_allclose(np.array(max_plus_scan(-a, b, h)), np.array(mx.stack(past[1:])), atol=1e-5)
