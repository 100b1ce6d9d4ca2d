"""Truths 12 to 16: lag, triads, two populations, noise and spheres."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.oscillators import theory
from kssm_mlx.oscillators.integrate import integrate
from kssm_mlx.oscillators.kuramoto import Phases, axial_rotation, mean_field, sakaguchi, sphere, triadic
from kssm_mlx.oscillators.network import Lagged, blocks
from kssm_mlx.oscillators.order import coherence, mean_phase, vector_coherence
from tests.support.laboratory import quantiles, random_phases, steady_coherence


def column(values) -> mx.array:
    return mx.array(values)[:, None]


def test_12_sakaguchi():
    """R^2 = 1 - 2 gamma / (K cos alpha), Omega = -(K / 2) sin alpha (1 + R^2).

    gamma .5, K 3, alpha .3 / .6 / 1: R .8069 / .7721 / .6189, Omega -.7319 / -1.3519 / -1.7457. N = 4000, RK4
    with dt = .05, tolerance 2e-3.
    """
    alpha = [0.3, 0.6, 1.0]
    args = (quantiles("lorentzian", 0.5, 4000), 3.0, column(alpha))
    observe = lambda theta: mx.stack([coherence(theta), mean_phase(theta)])  # noqa: E731
    _, record = integrate(Phases(sakaguchi), mx.zeros((3, 4000)), 0.05, 800, args, observe=observe, every=4)
    R, psi = np.array(record)[100:].transpose(1, 0, 2)
    turned = np.unwrap(psi, axis=0)
    speed = (turned[-1] - turned[0]) / (0.2 * (len(turned) - 1))
    expected = np.array([theory.sakaguchi(3.0, a, 0.5) for a in alpha])
    np.testing.assert_allclose(expected[:, 0], [0.8069, 0.7721, 0.6189], atol=5e-5)
    np.testing.assert_allclose(expected[:, 1], [-0.7319, -1.3519, -1.7457], atol=5e-5)
    np.testing.assert_allclose(R.mean(axis=0), expected[:, 0], atol=2e-3)
    np.testing.assert_allclose(speed, expected[:, 1], atol=2e-3)


def test_13_triadic_branches():
    """R^2 = (K2 - K1 + sqrt((K1 + K2)^2 - 8 K2)) / (2 K2), gamma 1.

    (K1, K2) = (1, 8): .8338, (1.8, 5): .7549, (-.5, 12): .8785. From aligned phases, N = 2000, tolerance
    2e-3; from random phases (1, 8) stays incoherent, R < .1.
    """
    cases = [(1.0, 8.0), (1.8, 5.0), (-0.5, 12.0), (1.0, 8.0)]
    K1, K2 = (column(k) for k in zip(*cases))
    theta = mx.concatenate([mx.zeros((3, 2000)), random_phases(1, 2000)])
    R = steady_coherence(Phases(triadic), theta, 60, (quantiles("lorentzian", 1.0, 2000), K1, K2), share=0.6)
    expected = [theory.triadic(*case, 1.0)[0] for case in cases[:3]]
    np.testing.assert_allclose(expected, [0.8338, 0.7549, 0.8785], atol=5e-5)
    np.testing.assert_allclose(R[:3], expected, atol=2e-3)
    assert R[3] < 0.1


def test_13_triadic_saddle_node():
    """The coherent pair is born at K1* = -K2 + 2 sqrt(2 K2): no branch below it, two that meet above it."""
    for K2 in (5.0, 8.0, 12.0):
        K1 = theory.triadic_saddle_node(K2, 1.0)
        assert np.isnan(theory.triadic(K1 - 1e-6, K2, 1.0)).all()
        stable, unstable = theory.triadic(K1 + 1e-6, K2, 1.0)
        assert 0 < stable - unstable < 1e-2


def test_14_chimera_theory():
    """Abrams 2008, A .2, beta .1: r .72915, |psi| .20941, eigenvalues -.0145 +- .1022i; unstable r .88342."""
    stable, unstable = theory.chimera(0.2, 0.1), theory.chimera(0.2, 0.1, guess=(0.9, -0.2))
    assert stable.r == pytest.approx(0.72915, abs=1e-5)
    assert abs(stable.psi) == pytest.approx(0.20941, abs=1e-5)
    np.testing.assert_allclose(
        np.sort_complex(stable.eigenvalues), [-0.0145 - 0.1022j, -0.0145 + 0.1022j], atol=1e-4
    )
    assert unstable.r == pytest.approx(0.88342, abs=1e-5)
    assert unstable.eigenvalues.real.max() > 0


def test_14_chimera_simulated():
    """Two groups of 128 identical oscillators: one stays locked, the other at r .72915. T = 60, 1e-3.

    The drifting group starts on the quantiles of the Poisson kernel with the theory's r and psi; coupling
    (1 + A) / 2 inside and (1 - A) / 2 across, lag pi / 2 - beta.
    """
    n, state = 128, theory.chimera(0.2, 0.1)
    p = (np.arange(n) + 0.5) / n
    drifting = 2 * np.arctan((1 - state.r) / (1 + state.r) * np.tan(np.pi * (p - 0.5)))
    theta = mx.array(np.stack([np.full(n, state.psi), drifting]).astype(np.float32))
    K, lag = mx.array([[0.6, 0.4], [0.4, 0.6]]), np.pi / 2 - 0.1
    _, record = integrate(Phases(Lagged(blocks)), theta, 0.1, 600, (0.0, lag, K), observe=coherence, every=10)
    R = np.array(record)
    np.testing.assert_allclose(R[:, 0], 1, atol=1e-3)
    np.testing.assert_allclose(R[:, 1], state.r, atol=1e-3)


def test_14_chimera_needs_the_right_side():
    """The same start with the other sign of psi is no fixed point: the drifting group leaves r = .72915."""
    state = theory.chimera(0.2, 0.1)
    there = theory.chimera_velocity(state.r, state.psi, 0.2, 0.1)
    mirrored = theory.chimera_velocity(state.r, -state.psi, 0.2, 0.1)
    np.testing.assert_allclose(there, 0, atol=1e-12)
    assert np.abs(mirrored).max() > 1e-2


def test_15_noise():
    """Identical phases with noise D: R = I1(K R / D) / I0(K R / D), K_c = 2 D.

    D .5: K 1.5 / 2 / 3 -> .7242 / .8315 / .9022, and K .5 stays incoherent. Euler-Maruyama, N = 4000, dt .02,
    tolerance 2e-2.
    """
    K = [1.5, 2.0, 3.0, 0.5]
    R = steady_coherence(
        Phases(mean_field),
        mx.zeros((4, 4000)),
        20,
        (0.0, column(K)),
        dt=0.02,
        share=0.5,
        method="euler",
        noise=0.5,
        key=mx.random.key(15),
    )
    expected = [theory.noisy(k, 0.5) for k in K]
    np.testing.assert_allclose(expected, [0.7242, 0.8315, 0.9022, 0.0], atol=5e-5)
    np.testing.assert_allclose(R[:3], expected[:3], atol=2e-2)
    assert R[3] < 0.1


def test_15_noise_diffuses():
    """Without coupling the phases spread with variance 2 D t. N = 20000, D .3, t 2, tolerance 3 %."""
    options = {"method": "euler", "noise": 0.3, "key": mx.random.key(1)}
    theta, _ = integrate(Phases(mean_field), mx.zeros(20000), 0.05, 40, (0.0, 0.0), **options)
    assert mx.var(theta).item() == pytest.approx(2 * 0.3 * 2, rel=0.03)


def test_16_sphere():
    """D = 3: R jumps to 1/2 as K -> 0+, as in all odd dimensions. K .2, N = 4000, T = 100, 2e-2."""
    n = 4000
    rotation = axial_rotation(mx.random.normal((n, 3), key=mx.random.key(16)))
    x = mx.broadcast_to(mx.array([0.0, 0.0, 1.0]), (n, 3))
    x, record = integrate(sphere, x, 0.1, 1000, (rotation, 0.2), observe=vector_coherence, every=20)
    assert theory.sphere_onset(3) == pytest.approx(0.5, abs=1e-12)
    assert theory.sphere(0.2, 1.0) == pytest.approx(0.5, abs=2e-3)
    assert np.array(record)[-12:].mean() == pytest.approx(theory.sphere_onset(3), abs=2e-2)
    assert mx.mean(mx.linalg.norm(x, axis=-1)).item() == pytest.approx(1, abs=1e-3)


def test_16_circle_is_the_sphere_of_two_dimensions():
    """D = 2 on the sphere is the classical model: same angles after T = 4 to 1e-4 (float32)."""
    theta, omega = random_phases(20), mx.random.normal((20,), key=mx.random.key(3))
    expected, _ = integrate(Phases(mean_field), theta, 0.05, 80, (omega, 1.5))
    zero = mx.zeros_like(omega)
    turn = mx.stack([mx.stack([zero, -omega], -1), mx.stack([omega, zero], -1)], -2)
    x, _ = integrate(sphere, mx.stack([mx.cos(theta), mx.sin(theta)], -1), 0.05, 80, (turn, 1.5))
    np.testing.assert_allclose(np.array(x[:, 0]), np.cos(np.array(expected)), atol=1e-4)
    np.testing.assert_allclose(np.array(x[:, 1]), np.sin(np.array(expected)), atol=1e-4)
