"""The bank of coupled phases: compiled form against paper, its adjoint, hand-over, physics it must show."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops import dispatch, proof
from kssm_mlx.ops.kuramoto_bank import kuramoto_bank, kuramoto_bank_reference
from kssm_mlx.oscillators.planar import Planar

CASE = dispatch.case("kuramoto_bank")
pytestmark = pytest.mark.usefixtures("uncompiled")


def run(arrays, op=kuramoto_bank, **options):
    """(Z complex [B, T, G, H], theta) of the case's arguments."""
    K, re, im, tau, theta, omega = arrays
    Z, theta = op(theta, omega, K, Planar(re, im), tau, **options)
    return np.array(Z.re) + 1j * np.array(Z.im), np.array(theta)


@pytest.mark.parametrize("B, T, N", [(1, 1, 1), (2, 3, 5), (1, 17, 8)])
def test_values_and_gradients_are_those_on_paper(B, T, N):
    forms = [proof.outcome(CASE, form, CASE.arguments(B, T, N), {}) for form in ("compiled", "reference")]
    for ours, theirs in zip(*forms, strict=True):
        scale = max(mx.abs(theirs).max().item(), 1e-2)
        np.testing.assert_allclose(np.array(ours) / scale, np.array(theirs) / scale, atol=2e-5)


def test_gradient_is_the_float64_difference():
    """Of sum(Re Z_1 + Im Z_3) along a direction of all arguments, by numpy in float64."""
    arrays = CASE.arguments(1, 6, 4)
    ways = [mx.random.normal(x.shape, key=mx.random.key(30 + i)) for i, x in enumerate(arrays)]

    def oracle(sign):
        K, re, im, tau, theta, omega = (
            np.array(x, np.float64) + sign * 1e-5 * np.array(d, np.float64) for x, d in zip(arrays, ways)
        )
        total = 0
        for t in range(6):
            for _ in range(2):
                f = K[:, t] / 2 * np.exp(1j * theta).mean(-1) + re[:, t] + 1j * im[:, t]
                speed = omega + 2 * (f[..., None] * np.exp(-1j * theta)).imag
                theta = theta + tau[:, t, :, None] / 2 * speed
            total += np.exp(1j * theta).mean(-1).real.sum() + np.exp(3j * theta).mean(-1).imag.sum()
        return total

    def value(K, re, im, tau, theta, omega):
        Z, _ = kuramoto_bank(theta, omega, K, Planar(re, im), tau, steps=2, harmonics=3)
        return Z.re[..., 0].sum() + Z.im[..., 2].sum()

    gradients = mx.grad(value, argnums=tuple(range(6)))(*arrays)
    slope = sum((g * d).sum().item() for g, d in zip(gradients, ways))
    assert slope == pytest.approx((oracle(1) - oracle(-1)) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("cut", [1, 4])
def test_phases_hand_over_anywhere(cut):
    *drive, theta, omega = CASE.arguments(2, 7, 5)
    Z, end = run([*drive, theta, omega], steps=2)
    first, middle = run([*(x[:, :cut] for x in drive), theta, omega], steps=2)
    second, last = run([*(x[:, cut:] for x in drive), mx.array(middle), omega], steps=2)
    np.testing.assert_allclose(np.concatenate([first, second], 1), Z, atol=1e-5)
    np.testing.assert_allclose(np.exp(1j * last), np.exp(1j * end), atol=1e-5)


def test_free_phases_turn_at_their_frequency():
    """K = h = 0: theta(t) = theta(0) + omega t, and R of equal frequencies does not change."""
    drive = [mx.zeros((1, 5, 1))] * 3 + [mx.full((1, 5, 1), 0.2)]
    theta = mx.array([[[0.1, 1.0, -2.0]]])
    Z, end = run([*drive, theta, mx.full((1, 3), 1.5)])
    np.testing.assert_allclose(end, np.array(theta) + 1.5, atol=1e-5)
    np.testing.assert_allclose(np.abs(Z[0, :, 0, 0]), np.abs(np.exp(1j * np.array(theta)).mean()), atol=1e-6)


def test_two_phases_lock_at_the_known_difference():
    """phi' = Delta - K sin(phi) for two phases: they lock at sin(phi) = Delta / K."""
    T = 60
    drive = [mx.full((1, T, 1), 2.0), mx.zeros((1, T, 1)), mx.zeros((1, T, 1)), mx.full((1, T, 1), 0.3)]
    _, theta = run([*drive, mx.array([[[0.0, 2.0]]]), mx.array([[0.6, -0.6]])])
    assert math.sin(theta[0, 0, 0] - theta[0, 0, 1]) == pytest.approx(1.2 / 2.0, abs=1e-4)


def test_harmonics_of_phases_in_two_clusters():
    """Half the phases opposite the others: Z_1 = 0, Z_2 = 1, Z_3 = 0."""
    drive = [mx.zeros((1, 1, 1))] * 3 + [mx.ones((1, 1, 1))]
    Z, _ = run([*drive, mx.array([[[0.0, math.pi] * 3]]), mx.zeros((1, 6))], harmonics=3)
    np.testing.assert_allclose(Z.flatten(), [0, 1, 0], atol=1e-6)


def test_phases_stay_wrapped():
    *drive, theta, omega = CASE.arguments(1, 5, 4)
    for op in (kuramoto_bank, kuramoto_bank_reference):
        assert np.abs(run([*drive, theta, omega + 40], op)[1]).max() <= math.pi + 1e-5


def test_unknown_impl_is_refused():
    with pytest.raises(ConfigError, match="impl is one of auto, compiled, kernel, got 'metal'"):
        run(CASE.arguments(1, 1, 2), impl="metal")
