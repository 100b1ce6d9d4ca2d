"""Truths 26 to 28: the energy of wells, how many of them hold a population, and where."""

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import brentq

from kssm_mlx.ops.ball_wells import settle
from kssm_mlx.oscillators.wells import curvature, energy, fixed_points, shares, slope

AXES = np.concatenate([np.eye(3), -np.eye(3)])
GOLDEN = (1 + 5**0.5) / 2
ICOSAHEDRON = np.array(
    [np.roll([0, s, t * GOLDEN], turn) for turn in range(3) for s in (1, -1) for t in (1, -1)]
) / np.hypot(1, GOLDEN)


def inside(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return rng.uniform(0.05, 0.95, (n, 1)) * x / np.linalg.norm(x, axis=1, keepdims=True)


def rest(a: np.ndarray, wells: np.ndarray, sharpness: float) -> np.ndarray:
    """After many steps of the op's own descent, in float64."""
    for _ in range(4000):
        a = a - 0.5 * slope(a, wells, sharpness)
    return a


@pytest.mark.parametrize("sharpness", [0.3, 3.0, 40.0])
def test_26_the_step_descends_the_energy(sharpness):
    """Gradient and Hessian by central differences; no step of 0 < beta <= 2 raises E; `settle` takes it."""
    wells, a = 0.9 * ICOSAHEDRON, inside(40)

    def differences(f, a):
        return np.stack([(f(a + e) - f(a - e)) / 2e-5 for e in 1e-5 * np.eye(3)], -1)

    numeric = differences(lambda a: energy(a, wells, sharpness), a)
    np.testing.assert_allclose(slope(a, wells, sharpness), numeric, atol=1e-8)
    bend = differences(lambda a: slope(a, wells, sharpness), a[0])
    np.testing.assert_allclose(curvature(a[0], wells, sharpness), bend, atol=1e-6)
    assert np.linalg.eigvalsh(bend).max() <= 1 + 1e-6
    for beta in (0.05, 1.0, 2.0):
        moved = a - beta * slope(a, wells, sharpness)
        assert np.all(energy(moved, wells, sharpness) <= energy(a, wells, sharpness) + 1e-14)
        ours = settle(
            mx.array(a[:, :, None], mx.float32),
            mx.full((40, 1), beta),
            mx.array(wells[:, :, None], mx.float32),
            mx.array([sharpness]),
        )
        np.testing.assert_allclose(np.array(ours)[:, :, 0], moved, atol=2e-6)


def test_27_two_opposite_wells_are_the_mean_field_of_a_magnet():
    """a = r tanh(σ r a): below σ r² = 1 only the centre rests, above it is between two that are stable."""
    r, axis = 0.9, np.array([[0, 0, 1.0], [0, 0, -1.0]])
    for beyond in (0.8, 0.99, 1.05, 2.0, 6.0):
        sharpness = beyond / r**2
        found = fixed_points(r * axis, sharpness, inside(200))
        heights = np.sort(found.points[:, 2])
        np.testing.assert_allclose(found.points[:, :2], 0, atol=1e-9)
        if beyond < 1:
            np.testing.assert_allclose(heights, [0], atol=1e-9)
            assert found.stable.all()
        else:
            high = brentq(lambda a, s=sharpness: a - r * np.tanh(s * r * a), 1e-3, 1)
            np.testing.assert_allclose(heights, [-high, 0, high], atol=1e-9)
            assert found.stable[np.argsort(found.points[:, 2])].tolist() == [True, False, True]


@pytest.mark.parametrize("name, shape", [("octahedron", AXES), ("icosahedron", ICOSAHEDRON)])
def test_28_sharp_wells_all_hold_and_blunt_ones_do_not(name, shape):
    """The centre loses its stability at σ r² = 3 whatever the solid; above, as many attractors as wells.

    Against a root finder: from random starts the descent ends at its stable fixed points, at all of them.
    """
    r = 0.9
    wells = r * shape
    for beyond in (2.9, 3.1):
        eigenvalues = np.linalg.eigvalsh(curvature(np.zeros(3), wells, beyond / r**2))
        np.testing.assert_allclose(eigenvalues, 1 - beyond / 3, atol=1e-12)
    blunt, sharp = 1.0 / r**2, (8.0 if name == "octahedron" else 20.0) / r**2
    assert fixed_points(wells, blunt, inside(100)).stable.tolist() == [True]
    found = fixed_points(wells, sharp, np.concatenate([inside(400), wells]))
    stable = found.points[found.stable]
    assert len(stable) == len(shape)
    ends = rest(inside(300, seed=7), wells, sharp)
    far = np.linalg.norm(ends[:, None] - stable, axis=-1)
    assert far.min(axis=1).max() < 1e-6
    assert set(far.argmin(axis=1)) == set(range(len(shape)))
    # Each rests where its own well draws alone, nearly: along its direction.
    along = stable / np.linalg.norm(stable, axis=1, keepdims=True)
    np.testing.assert_allclose((along @ shape.T).max(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(shares(stable, wells, sharp).sum(axis=1), 1)
