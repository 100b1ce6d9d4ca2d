"""The noise floor is that of an arm against itself; the placebo moves as far, and not where it must not."""

import math

import numpy as np
import pytest

from kssm_mlx.checks.oscillators.noise_floor import measure_placebo, noise_floor


def test_the_floor_is_mean_and_spread_over_seeds():
    floor = noise_floor(lambda seed: {0: 1.0, 1: 2.0, 2: 3.0}[seed], (0, 1, 2))
    assert floor == (2.0, 1.0) and floor.mean == 2.0


def test_a_measurement_that_is_not_finite_makes_a_floor_that_nothing_exceeds():
    effect, floor = 1e9, noise_floor(lambda seed: math.nan if seed else 1.0, (0, 1))
    assert not effect > 3 * floor.mean


def test_one_seed_has_no_spread():
    with pytest.raises(ValueError, match="two seeds or more, got 1"):
        noise_floor(lambda seed: 0.0, (0,))


def test_a_placebo_is_as_long_as_the_change_and_another_one():
    change = np.random.default_rng(0).standard_normal((5, 7, 16)) * np.arange(7)[:, None]
    moved = measure_placebo(change, seed=1)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=-1), np.linalg.norm(change, axis=-1), rtol=1e-12)
    cosine = np.sum(moved * change) / np.sum(change**2)
    assert abs(cosine) < 0.2 and np.array_equal(moved, measure_placebo(change, seed=1))
    assert not np.array_equal(moved, measure_placebo(change, seed=2))


def test_a_placebo_does_not_move_along_what_is_kept():
    rng = np.random.default_rng(0)
    change, keep = rng.standard_normal((4, 32)), rng.standard_normal((4, 32))
    keep[0] = 0  # nowhere in particular
    moved = measure_placebo(change, seed=0, keep=keep)
    assert np.abs(np.sum(moved * keep, axis=-1)).max() < 1e-12
    np.testing.assert_allclose(np.linalg.norm(moved, axis=-1), np.linalg.norm(change, axis=-1))
