"""What is asked of every recurrence: the form on paper, its gradients, float64, and states that hand over."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

SHAPES = [1, 2, 16, 17, 33, 70]
MASKS = ["plain", "resets", "lengths", "resets and lengths"]


def normal(seed: int, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def masks(kind: str, B: int, T: int) -> dict[str, mx.array]:
    """resets with probability 0.2, also inside padding; lengths of a full row, an empty one, one between."""
    found = {}
    if "resets" in kind:
        found["resets"] = mx.random.uniform(shape=(B, T), key=mx.random.key(9)) < 0.2
    if "lengths" in kind:
        found["lengths"] = mx.array([T, 0, T // 2 + 1, T][:B])
    return found


def scalar(op, masks: dict, sums=lambda s: [s]):
    """A scalar of every valid output and of the state, where `sums` gives what the state stands for."""

    def value(state, *args):
        y, state = op(*args, state, **masks)
        if "lengths" in masks:
            valid = mx.arange(y.shape[1]) < masks["lengths"][:, None]
            y = mx.where(valid.reshape(*valid.shape, *[1] * (y.ndim - 2)), y, 0)
        return mx.sin(y).sum() + sum(mx.cos(x).sum() for x in sums(state))

    return value


def assert_same_function(fast, reference, args, state, masks, sums=lambda s: [s], tolerance=2e-5):
    """Outputs, state and the gradient in every argument agree, relative to the largest value of each."""
    both = [
        mx.value_and_grad(scalar(op, masks, sums), argnums=tuple(range(1 + len(args))))(state, *args)
        for op in (fast, reference)
    ]
    (value, gradients), (expected, expected_gradients) = both
    np.testing.assert_allclose(value.item(), expected.item(), rtol=tolerance)
    leaves = zip(_leaves(gradients), _leaves(expected_gradients), strict=True)
    for ours, theirs in leaves:
        assert ours.shape == theirs.shape
        scale = max(mx.abs(theirs).max().item(), 1e-3)
        np.testing.assert_allclose(np.array(ours) / scale, np.array(theirs) / scale, atol=tolerance)


def assert_matches_float64(fast, oracle, args, state, sums=lambda s: [s], tolerance=2e-5):
    """The fp32 gradient along a direction is the central difference of a numpy oracle in float64.

    Not of MLX in float64: its exp, sin and cos have fp32 accuracy there (measured on 0.32.4, CPU).
    """

    def value(wide):
        y, sums = oracle(*wide)
        return np.sin(y).sum() + sum(np.cos(x).sum() for x in sums)

    wide = [np.array(x, np.float64) for x in (*args, *_leaves([state]))]
    ways = [np.array(normal(40 + i, *x.shape), np.float64) for i, x in enumerate(wide)]
    ends = [value([x + s * 1e-5 * d for x, d in zip(wide, ways)]) for s in (1, -1)]
    expected = (ends[0] - ends[1]) / 2e-5
    gradients = mx.grad(scalar(fast, {}, sums), argnums=tuple(range(1 + len(args))))(state, *args)
    gradients = [np.array(g, np.float64) for g in (*gradients[1:], *_leaves([gradients[0]]))]
    slope, size = (sum(f(g * d).sum() for g, d in zip(gradients, ways)) for f in (np.asarray, np.abs))
    assert abs(slope - expected) <= tolerance * size, f"gradient {slope}, float64 difference {expected}"


def assert_chunk_invariant(op, args, state, cut, time_varying, tolerance=2e-5):
    """Cut anywhere, hand the state over: the same outputs and the same final state."""
    y, end = op(*args, state)
    parts = [
        [x[:, s] if moving else x for x, moving in zip(args, time_varying)]
        for s in (slice(cut), slice(cut, None))
    ]
    y1, middle = op(*parts[0], state)
    y2, final = op(*parts[1], middle)
    np.testing.assert_allclose(
        np.array(mx.concatenate([y1, y2], axis=1)), np.array(y), atol=tolerance, rtol=tolerance
    )
    for ours, theirs in zip(_leaves([final]), _leaves([end]), strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=tolerance, rtol=tolerance)


def _leaves(values) -> list[mx.array]:
    return [
        leaf for value in values for leaf in (_leaves(value) if isinstance(value, (tuple, list)) else [value])
    ]
