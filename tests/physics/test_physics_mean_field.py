"""Truths 7 to 11: the classical transition to synchrony, against closed forms for infinite N.

Frequencies are quantiles, theta(0) = 0 unless said, RK4 with dt = .05, float32.
"""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.oscillators import theory
from kssm_mlx.oscillators.frequencies import Frequencies
from kssm_mlx.oscillators.integrate import integrate
from kssm_mlx.oscillators.kuramoto import Phases, mean_field
from kssm_mlx.oscillators.order import coherence
from tests.support.laboratory import quantiles, random_phases, steady_coherence

KURAMOTO = Phases(mean_field)


def column(values) -> mx.array:
    """One coupling per row of a batch."""
    return mx.array(values)[:, None]


def test_07_lorentzian_order_parameter():
    """R = sqrt(1 - 2 gamma / K); gamma .5, K 1.5 / 2 / 4 -> .5774 / .7071 / .8660. N = 2000, 5e-3."""
    K = [1.5, 2.0, 4.0]
    R = steady_coherence(KURAMOTO, mx.zeros((3, 2000)), 50, (quantiles("lorentzian", 0.5, 2000), column(K)))
    expected = [theory.lorentzian(k, 0.5) for k in K]
    np.testing.assert_allclose(expected, [0.5774, 0.7071, 0.8660], atol=5e-5)
    np.testing.assert_allclose(R, expected, atol=5e-3)


@pytest.mark.parametrize(
    "family, width, expected",
    [
        ("lorentzian", 0.5, 1.0),
        ("gaussian", 1.0, np.sqrt(8 / np.pi)),
        ("uniform", 1.0, 4 / np.pi),
        ("identical", 1.0, 0.0),
    ],
)
def test_07_critical_couplings(family, width, expected):
    """K_c = 2 / (pi g(0)): 2 gamma, sqrt(8 / pi) sigma, 4 Delta / pi, 0. Tolerance 1e-12."""
    assert Frequencies(family, width, centre=0.3).critical_coupling == pytest.approx(expected, abs=1e-12)


def test_08_lorentzian_transient():
    """R(t)^2 = Rinf^2 / (1 + (Rinf^2 / R0^2 - 1) exp(-(K - 2 gamma) t)) from theta = 0. N = 2000, 2e-2."""
    omega = quantiles("lorentzian", 0.5, 2000)
    _, record = integrate(KURAMOTO, mx.zeros(2000), 0.05, 400, (omega, 2.0), observe=coherence)
    expected = theory.lorentzian_transient(0.05 * np.arange(401), 2.0, 0.5, 1.0)
    np.testing.assert_allclose(np.array(record), expected, atol=2e-2)
    assert expected[0] == 1 and expected[200] < 0.71  # the curve is a transient, not a constant


def test_09_gaussian_order_parameter():
    """1 = K sqrt(pi / 8) exp(-x) (I0(x) + I1(x)), x = (K R)^2 / 4, sigma 1.

    K 1.7 / 2 / 3 -> .4254 / .7152 / .9252, N = 2000, tolerance 5e-3; at K = 1.2 < K_c the phases stay
    incoherent, R < .1.
    """
    K = [1.7, 2.0, 3.0, 1.2]
    R = steady_coherence(
        KURAMOTO, mx.zeros((4, 2000)), 80, (quantiles("gaussian", 1.0, 2000), column(K)), dt=0.1
    )
    expected = [theory.gaussian(k, 1.0) for k in K]
    np.testing.assert_allclose(expected[:3], [0.4254, 0.7152, 0.9252], atol=5e-5)
    np.testing.assert_allclose(R[:3], expected[:3], atol=5e-3)
    assert expected[3] == 0 and R[3] < 0.1


def test_10_uniform_order_parameter():
    """First-order at K_c = 4 Delta / pi = 1.273: random start, K 1.35 / 2 -> .8541 / .9519, 1.2 -> R < .2.

    N = 500, T = 100, tolerance 2e-3. Within 3 % of K_c a finite population fluctuates too much to tell.
    """
    K = [1.35, 2.0, 1.2]
    theta = mx.broadcast_to(random_phases(500, seed=10), (3, 500))
    R = steady_coherence(KURAMOTO, theta, 100, (quantiles("uniform", 1.0, 500), column(K)), dt=0.1)
    expected = [theory.uniform(k, 1.0) for k in K]
    np.testing.assert_allclose(expected, [0.8541, 0.9519, 0], atol=5e-5)
    np.testing.assert_allclose(R[:2], expected[:2], atol=2e-3)
    assert R[2] < 0.2


def test_10_uniform_jump_and_exponent():
    """The branch starts at pi / 4 and R - pi / 4 grows as (K - K_c)^(2/3). Tolerance .01 on the exponent."""
    critical = 4 / np.pi
    gaps = np.array([1e-7, 1e-6, 1e-5])
    rise = [theory.uniform(critical + gap, 1.0) - np.pi / 4 for gap in gaps]
    assert theory.uniform(critical - 1e-9, 1.0) == 0
    assert np.polyfit(np.log(gaps), np.log(rise), 1)[0] == pytest.approx(2 / 3, abs=0.01)


def test_11_uncoupled_phases():
    """K = 0: sqrt(N) <R> = sqrt(pi) / 2 = .8862, the mean of 4000 sets of 200 random phases. 2 %."""
    R = coherence(random_phases(4000, 200))
    assert mx.mean(R).item() * np.sqrt(200) == pytest.approx(np.sqrt(np.pi) / 2, rel=0.02)


def test_11_incoherent_fluctuations():
    """0 < K < K_c: N <R^2> = 1 / (1 - K / K_c), 1.43 at .3 and 2 at .5 of K_c. Tolerance 10 %.

    N = 400 lorentzian quantiles (K_c = 1), 100 sets of random phases, t = 10 to 40, Heun with dt = .1.
    """
    n, sets, fractions = 400, 100, mx.array([0.3, 0.5])[:, None, None]
    theta = mx.broadcast_to(random_phases(sets, n, seed=12), (2, sets, n))
    options = {"args": (quantiles("lorentzian", 0.5, n), fractions), "method": "heun"}
    theta, _ = integrate(KURAMOTO, theta, 0.1, 100, **options)
    mean_square = lambda x: mx.mean(coherence(x) ** 2, axis=-1)  # noqa: E731
    _, record = integrate(KURAMOTO, theta, 0.1, 300, **options, observe=mean_square, every=5)
    fluctuation = n * np.array(record).mean(axis=0)
    expected = [theory.incoherent_fluctuation(f, 1.0) for f in (0.3, 0.5)]
    np.testing.assert_allclose(fluctuation, expected, rtol=0.1)


def test_11_finite_size_slope():
    """The slope of log R against log N is -.5 +- .05 for random phases, N = 50 to 3200, 500 sets each."""
    sizes = [50, 200, 800, 3200]
    R = [mx.mean(coherence(random_phases(500, n, seed=n))).item() for n in sizes]
    assert np.polyfit(np.log(sizes), np.log(R), 1)[0] == pytest.approx(-0.5, abs=0.05)
