"""Layer norm and RMS norm against float64, in both forms: widths, rows of weights, extremes, gradients."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.ops.norms import layer_norm, rms_norm
from tests.support.recurrences import normal

EPS = 1e-5


def exact(x, weight, bias, centred: bool) -> np.ndarray:
    x = np.array(x, np.float64)
    x = x - x.mean(-1, keepdims=True) if centred else x
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    y = y if weight is None else y * np.array(weight, np.float64)
    return y if bias is None else y + np.array(bias, np.float64)


@pytest.mark.parametrize("weights", ["none", "one row", "a row for each head"])
@pytest.mark.parametrize("D", [1, 5, 16, 37, 256])
def test_is_the_formula(form, D, weights):
    x = 3 * normal(0, 2, 7, 3, D) + 1
    shape = {"none": None, "one row": (D,), "a row for each head": (3, D)}[weights]
    weight, bias = (None, None) if shape is None else (normal(1, *shape), normal(2, *shape))
    np.testing.assert_allclose(
        np.array(layer_norm(x, weight, bias, EPS)), exact(x, weight, bias, True), atol=1e-5
    )
    np.testing.assert_allclose(np.array(rms_norm(x, weight, EPS)), exact(x, weight, None, False), atol=1e-5)


def test_a_large_mean_costs_no_digits(form):
    """Deviations are taken from the mean, not the mean square from the square mean."""
    x = normal(0, 4, 64) + 1000
    np.testing.assert_allclose(
        np.array(layer_norm(x, None, None, EPS)), exact(x, None, None, True), atol=1e-3
    )


@pytest.mark.parametrize("fill", [0.0, 1e18, mx.nan])
def test_extremes(form, fill):
    y = rms_norm(mx.full((2, 32), fill), None, EPS)
    expected = {0.0: 0.0, 1e18: 1.0}.get(fill, np.nan)
    np.testing.assert_allclose(np.array(y), np.full((2, 32), expected), rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (32,), (3, 32)])
def test_gradients_are_central_differences_in_float64(form, shape):
    given = [normal(0, 70, 3, shape[-1]), 1 + 0.1 * normal(1, *shape), normal(2, *shape)]
    pulls = normal(3, *given[0].shape), normal(4, *given[0].shape)

    def loss(x, weight, bias):
        return (layer_norm(x, weight, bias, EPS) * pulls[0] + rms_norm(x, weight, EPS) * pulls[1]).sum()

    def in_float64(x, weight, bias):
        return (exact(x, weight, bias, True) * pulls[0] + exact(x, weight, None, False) * pulls[1]).sum()

    for i, slope in enumerate(mx.grad(loss, argnums=(0, 1, 2))(*given)):
        direction = np.array(normal(5 + i, *given[i].shape), np.float64)
        wide = [np.array(g, np.float64) for g in given]
        up, down = (
            in_float64(*(g + s * direction if j == i else g for j, g in enumerate(wide)))
            for s in (1e-5, -1e-5)
        )
        found = (np.array(slope, np.float64) * direction).sum()
        scale = np.abs(np.array(slope, np.float64) * direction).sum()
        assert abs(found - (up - down) / 2e-5) < 1e-5 * scale


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_dtypes_promote_as_elsewhere(form, dtype):
    x = normal(0, 4, 32).astype(mx.bfloat16)
    y = layer_norm(x, mx.ones(32, dtype), mx.zeros(32, dtype), EPS)
    assert y.dtype == dtype
    assert rms_norm(x, mx.ones(32, dtype), EPS).dtype == dtype
    np.testing.assert_allclose(
        np.array(y.astype(mx.float32)), exact(x.astype(mx.float32), None, None, True), atol=0.02
    )
