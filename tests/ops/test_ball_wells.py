"""The scan with wells: against a serial loop in float64, and the energy that a step never raises."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops.ball_scan import ball_scan
from kssm_mlx.ops.ball_wells import ball_wells, ball_wells_reference, settle
from tests.ops.test_ball_scan import arguments, given, serial

KAPPAS = [0, 0.5, 1]
FORMS = [ball_wells_reference, ball_wells, lambda *x: ball_wells(*x, impl="compiled")]
pytestmark = pytest.mark.usefixtures("uncompiled")


def wells(B, T, G, M=5, seed=0, kappa=1.0):
    """rotors, kicks, pull, points, sharpness, a0, float64."""
    p, k, a0 = arguments(B, T, G, seed=seed, kappa=kappa)
    rng = np.random.default_rng(seed + 50)
    points = rng.normal(size=(M, 3, G))
    points *= 0.9 / np.linalg.norm(points, axis=1, keepdims=True)
    return p, k, rng.uniform(0, 0.5, (B, T, G)), points, rng.uniform(1, 8, G), a0


def settled(y, pull, points, sharpness):
    """Shapes: y [B, 3, G]; pull [B, G]; points [M, 3, G]; sharpness [G]."""
    score = sharpness * np.einsum("mcg,bcg->bmg", points, y)
    share = np.exp(score - score.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    return y + pull[:, None] * (np.einsum("bmg,mcg->bcg", share, points) - y)


def loop(p, k, pull, points, sharpness, a, kappa=1.0):
    states = []
    for t in range(k.shape[1]):
        y = serial(p[:, t : t + 1], k[:, t : t + 1], a, kappa)[:, 0]
        a = settled(y, pull[:, t], points, sharpness)
        states.append(a)
    return np.stack(states, 1)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 2, 3, 4), (3, 33, 5, 6), (2, 40, 16, 60)])
def test_is_the_serial_loop(shape, kappa):
    *sizes, M = shape
    arrays = wells(*sizes, M=M, kappa=kappa)
    expected = loop(*arrays, kappa)
    for form in FORMS:
        np.testing.assert_allclose(np.array(form(*given(arrays), kappa)), expected, atol=4e-6)


def test_float64_agrees_to_single_sines():
    """Exponentials of MLX in float64 are of single precision on CPUs; all else is not."""
    arrays = wells(2, 20, 3)
    with mx.stream(mx.cpu):
        a = ball_wells(*given(arrays, mx.float64))
        assert a.dtype == mx.float64
        np.testing.assert_allclose(np.array(a), loop(*arrays), atol=1e-6)


def test_without_pull_it_is_the_plain_scan():
    p, k, pull, points, sharpness, a0 = given(wells(2, 33, 4))
    found = ball_wells(p, k, 0 * pull, points, sharpness, a0)
    np.testing.assert_allclose(np.array(found), np.array(ball_scan(p, k, a0)), atol=1e-6)


@pytest.mark.parametrize("pull", [0.05, 0.5, 1.0, 2.0])
def test_energy_never_rises(pull):
    """E(a) = |a|²/2 - log Σ exp(σ c.a) / σ curves by 1 at most, so a descent step of up to 2 lowers it."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(7, 3, 64))
    points *= 0.9 / np.linalg.norm(points, axis=1, keepdims=True)
    sharpness = np.geomspace(0.1, 60, 64)
    a = rng.normal(size=(20, 3, 64)) / 3

    def energy(a):
        score = sharpness * np.einsum("mcg,bcg->bmg", points, a)
        top = score.max(1)
        return (a * a).sum(1) / 2 - (top + np.log(np.exp(score - top[:, None]).sum(1))) / sharpness

    energies = [energy(a)]
    for _ in range(60):
        a = settled(a, np.full((20, 64), pull), points, sharpness)
        energies.append(energy(a))
    assert np.diff(energies, axis=0).max() <= 1e-13
    assert np.all(energies[-1] < energies[0])


def test_a_sharp_well_keeps_what_is_nearest_to_it():
    """From 0.3 beside each of six wells: back within 1e-3, whichever it is; without pull it stays away."""
    axes = np.concatenate([np.eye(3), -np.eye(3)])[:, :, None] * 0.9
    beside = axes[:, :, 0] + 0.3 * np.roll(axes[:, :, 0], 1, axis=1)
    still = mx.broadcast_to(mx.array([1.0, 0, 0, 0])[:, None], (6, 40, 4, 1))
    for pull, near in ((0.2, True), (0.0, False)):
        a = ball_wells(
            still,
            mx.zeros((6, 40, 3, 1)),
            mx.full((6, 40, 1), pull),
            mx.array(axes, mx.float32),
            mx.array([12.0]),
            mx.array(beside[:, :, None], mx.float32),
        )
        far = np.linalg.norm(np.array(a)[:, -1, :, 0] - axes[:, :, 0], axis=1)
        assert np.all(far < 1e-3 if near else far > 0.2)


def test_padding_and_resets():
    p, k, pull, points, sharpness, a0 = given(wells(2, 9, 3))
    p[:, 4] = 0
    a = ball_wells(p, k, pull, points, sharpness, a0)
    fresh = ball_wells(p[:, 4:], k[:, 4:], pull[:, 4:], points, sharpness)
    np.testing.assert_allclose(np.array(a[:, 4:]), np.array(fresh), atol=1e-6)
    p[:, 7:], k[:, 7:], pull[:, 7:] = mx.array([1.0, 0, 0, 0])[:, None], 0.0, 0.0
    a = ball_wells(p, k, pull, points, sharpness, a0)
    assert mx.array_equal(a[:, 8], a[:, 6])


def test_a_state_handed_over_goes_on():
    p, k, pull, points, sharpness, a0 = given(wells(2, 40, 3))
    whole = ball_wells(p, k, pull, points, sharpness, a0)
    first = ball_wells(p[:, :17], k[:, :17], pull[:, :17], points, sharpness, a0)
    rest = ball_wells(p[:, 17:], k[:, 17:], pull[:, 17:], points, sharpness, first[:, -1])
    np.testing.assert_allclose(np.array(rest), np.array(whole[:, 17:]), atol=2e-6)


@pytest.mark.parametrize("sharpness", [1e-3, 100.0, 1e4])
def test_finite_for_any_sharpness(sharpness):
    p, k, pull, points, _, a0 = given(wells(2, 64, 4))

    def total(*x):
        return mx.square(ball_wells(*x)).sum()

    inputs = (p, k, pull, points, mx.full((4,), sharpness), a0)
    gradients = mx.grad(total, argnums=tuple(range(6)))(*inputs)
    assert all(mx.isfinite(g).all().item() for g in (total(*inputs), *gradients))


@pytest.mark.parametrize("form", FORMS[1:], ids=["auto", "compiled"])
@pytest.mark.parametrize("T", [1, 2, 21])
def test_gradient_is_the_float64_difference(T, form):
    """Every argument along a random direction; the op in fp32, the differences in float64."""
    wide = [*wells(2, T, 3), np.array(0.8)]

    def value(a):
        x, y, z = np.moveaxis(a, -2, 0)
        return float((x * x * y + z * z * x - y * z).sum())

    def loss(*arrays):
        a = form(*arrays)
        x, y, z = (a[..., i, :] for i in range(3))
        return (x * x * y + z * z * x - y * z).sum()

    gradients = mx.grad(loss, argnums=tuple(range(7)))(*given(wide))
    for i, g in enumerate(gradients):
        assert g.shape == wide[i].shape
        way = np.random.default_rng(i).normal(size=wide[i].shape)
        ends = [loop(*(x + s * 1e-6 * way if j == i else x for j, x in enumerate(wide))) for s in (1, -1)]
        expected = (value(ends[0]) - value(ends[1])) / 2e-6
        g = np.array(g, np.float64)
        assert (g * way).sum() == pytest.approx(expected, rel=1e-4, abs=2e-6 * np.abs(g).sum())


def test_one_step_is_settle():
    p, k, pull, points, sharpness, a0 = given(wells(2, 1, 3))
    y = ball_scan(p, k, a0)[:, 0]
    found = ball_wells(p, k, pull, points, sharpness, a0)[:, 0]
    np.testing.assert_allclose(np.array(settle(y, pull[:, 0], points, sharpness)), np.array(found), atol=1e-6)


def test_negative_curvature_is_refused():
    with pytest.raises(ConfigError, match=r"kappa must be >= 0 .*got -1"):
        ball_wells(*given(wells(1, 1, 1)), -1)
