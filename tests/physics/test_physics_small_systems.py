"""Truths 1 to 6: what holds exactly, for any number of oscillators."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.oscillators import theory
from kssm_mlx.oscillators.integrate import flow, integrate
from kssm_mlx.oscillators.kuramoto import Phases, mean_field
from kssm_mlx.oscillators.network import matrix
from kssm_mlx.oscillators.order import coherence, harmonics, mean_phase, order_parameter
from tests.support.laboratory import f64, random_phases

pytestmark = pytest.mark.usefixtures("float64")
KURAMOTO = Phases(mean_field)


@pytest.mark.parametrize("n", [2, 3, 7, 12])
def test_01_roots_of_unity(n):
    """N roots of unity: Z_n = 0 unless N divides n, then 1. Tolerance 1e-12 (float64)."""
    real, imaginary = harmonics(f64(2 * np.pi * np.arange(n) / n), 2 * n)
    expected = [float(k % n == 0) for k in range(1, 2 * n + 1)]
    np.testing.assert_allclose(np.array(real), expected, atol=1e-12)
    np.testing.assert_allclose(np.array(imaginary), 0, atol=1e-12)


def test_01_equal_and_antipodal_phases():
    """All equal: R = 1, psi the phase. Half antipodal: Z_1 = 0, Z_2 = exp(2 i theta). Tolerance 1e-6."""
    equal = mx.full((5, 8), 0.7)
    np.testing.assert_allclose(np.array(coherence(equal)), 1, atol=1e-6)
    np.testing.assert_allclose(np.array(mean_phase(equal)), 0.7, atol=1e-6)
    real, imaginary = harmonics(mx.array([0.3, 0.3, 0.3 + np.pi, 0.3 + np.pi]), 2)
    np.testing.assert_allclose(np.array(real), [0, np.cos(0.6)], atol=1e-6)
    np.testing.assert_allclose(np.array(imaginary), [0, np.sin(0.6)], atol=1e-6)


@pytest.mark.parametrize("r", [0.1, 0.5, 0.9])
def test_01_poisson_kernel(r):
    """Quantiles of the Poisson kernel with parameter r (the Ott-Antonsen density): Z_n = r^n. Tolerance 1e-6.

    theta = 2 atan((1 - r) / (1 + r) tan(pi (p - 1/2))) maps evenly spread p; N = 4096.
    """
    p = (np.arange(4096) + 0.5) / 4096
    theta = 2 * np.arctan((1 - r) / (1 + r) * np.tan(np.pi * (p - 0.5)))
    real, imaginary = harmonics(f64(theta), 8)
    np.testing.assert_allclose(np.array(real), r ** np.arange(1, 9), atol=1e-6)
    np.testing.assert_allclose(np.array(imaginary), 0, atol=1e-6)


def test_02_two_oscillators_lock():
    """|detuning| <= K: R = cos(asin(detuning / K) / 2); detuning .8, K 1 -> .8944272. Tolerance 1e-12."""
    theta = flow(KURAMOTO, f64([0.3, -0.2]), 0.25, 200, (f64([0.4, -0.4]), 1.0))
    expected, _ = theory.two_oscillators(0.8, 1.0)
    assert coherence(theta).item() == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.8944272, abs=1e-7)


def test_02_two_oscillators_beat():
    """|detuning| > K: the phase difference turns at sqrt(detuning^2 - K^2); 2, 1 -> 1.73205. Tolerance 1e-3.

    Whole turns of the difference are timed over T = 200, RK4 with dt = .2, so no part of a turn is counted.
    """
    difference = lambda theta: theta[0] - theta[1]  # noqa: E731
    args = (f64([1.0, -1.0]), 1.0)
    _, record = integrate(KURAMOTO, f64([0.0, 0.0]), 0.2, 1000, args, observe=difference)
    x, t = np.array(record), 0.2 * np.arange(1001)
    crossings = np.interp(np.arange(np.pi, x[-1], 2 * np.pi), x, t)
    beat = 2 * np.pi * (len(crossings) - 1) / (crossings[-1] - crossings[0])
    assert beat == pytest.approx(theory.two_oscillators(2.0, 1.0)[1], abs=1e-3)


def test_03_identical_oscillators_descend_a_potential():
    """V = -(K N / 2) R^2, V' = -sum theta'^2: R never falls (-1e-13) and reaches 1. N = 50, K = 1."""
    n = 50
    theta, record = integrate(
        KURAMOTO, random_phases(n).astype(mx.float64), 0.1, 250, (0.0, 1.0), observe=coherence
    )
    assert np.diff(np.array(record)).min() >= -1e-13
    assert coherence(theta).item() == pytest.approx(1, abs=1e-10)

    scattered = random_phases(n, seed=1).astype(mx.float64)
    potential = lambda x: -n / 2 * coherence(x) ** 2  # noqa: E731
    step = 1e-4
    ahead, behind = (flow(KURAMOTO, scattered, dt, 1, (0.0, 1.0)) for dt in (step, -step))
    slope = (potential(ahead) - potential(behind)).item() / (2 * step)
    speed = KURAMOTO(scattered, mx.zeros_like(scattered), f64(1.0))
    assert slope == pytest.approx(-mx.sum(speed**2).item(), rel=1e-6)


def test_03_spread_decays_at_rate_K():
    """Close to synchrony the spread of identical phases falls as exp(-K t). K = 1.5, tolerance 1e-3."""
    theta = f64(np.linspace(-0.01, 0.01, 20))
    later = flow(KURAMOTO, theta, 0.1, 40, (0.0, 1.5))
    rate = -np.log((mx.max(later) - mx.min(later)).item() / 0.02) / 4.0
    assert rate == pytest.approx(1.5, rel=1e-3)


def test_04_cross_ratios_are_conserved():
    """Identical oscillators keep N - 3 cross ratios of exp(i theta), to the 4th order of RK4's dt.

    N = 7, K = 1, T = 5: relative drift below 1e-7 at dt = .05, and 16 +- 4 times less at half of it.
    """

    def cross_ratios(theta):
        w = np.exp(1j * np.array(theta))
        a, b, c, d = w[:-3], w[1:-2], w[2:-1], w[3:]
        return (a - c) * (b - d) / ((a - d) * (b - c))

    theta = f64(np.random.default_rng(4).uniform(-np.pi, np.pi, 7))
    drift = [
        np.abs(
            cross_ratios(flow(KURAMOTO, theta, dt, round(5 / dt), (0.6, 1.0))) / cross_ratios(theta) - 1
        ).max()
        for dt in (0.05, 0.025)
    ]
    assert drift[0] < 1e-7
    assert drift[0] / drift[1] == pytest.approx(16, abs=4)


@pytest.mark.parametrize("dtype, tolerance", [(mx.float64, 1e-12), (mx.float32, 1e-5 * 5**0.5)])
@pytest.mark.parametrize("name", ["shift", "rotating frame", "permutation", "reflection", "period"])
def test_05_symmetries(name, dtype, tolerance):
    """Five symmetries of theta' = omega + K R sin(psi - theta), T = 5: 1e-12, in float32 1e-5 sqrt(T)."""
    rng = np.random.default_rng(5)
    theta, omega, K = (f64(x).astype(dtype) for x in (rng.uniform(-np.pi, np.pi, 9), rng.normal(size=9), 1.7))
    end = flow(KURAMOTO, theta, 0.1, 50, (omega, K))
    order = mx.array([3, 1, 8, 0, 2, 7, 6, 4, 5])
    turns = f64([2 * np.pi * k for k in (1, -1, 0, 2, 0, 0, 1, -3, 0)]).astype(dtype)
    cases = {
        "shift": (theta + 0.9, omega, end + 0.9),
        "rotating frame": (theta, omega + 0.4, end + 0.4 * 5),
        "permutation": (theta[order], omega[order], end[order]),
        "reflection": (-theta, -omega, -end),
        "period": (theta + turns, omega, end + turns),
    }
    start, frequencies, expected = cases[name]
    moved = flow(KURAMOTO, start, 0.1, 50, (frequencies, K))
    np.testing.assert_allclose(np.array(moved), np.array(expected), rtol=0, atol=tolerance)


def test_06_mean_frequency():
    """Symmetric coupling without lag has no net torque: mean theta(T) - mean theta(0) = mean omega T. 1e-12.

    N = 30 on a random symmetric network and in the mean field; T = 10.
    """
    rng = np.random.default_rng(6)
    A = rng.normal(size=(30, 30))
    theta, omega = f64(rng.uniform(-np.pi, np.pi, 30)), f64(rng.normal(size=30))
    for system, coupling in ((Phases(matrix), f64(A + A.T) / 10), (KURAMOTO, f64(2.0))):
        end = flow(system, theta, 0.1, 100, (omega, coupling))
        assert (mx.mean(end) - mx.mean(theta)).item() == pytest.approx(mx.mean(omega).item() * 10, abs=1e-12)


def test_06_directed_coupling_does_exert_torque():
    """The counterpart: a directed network does not keep the mean frequency, so the test above can fail."""
    rng = np.random.default_rng(6)
    theta = f64(rng.uniform(-np.pi, np.pi, 30))
    end = flow(Phases(matrix), theta, 0.1, 100, (0.0, f64(rng.normal(size=(30, 30)))))
    assert abs((mx.mean(end) - mx.mean(theta)).item()) > 1e-2
    assert order_parameter(end)[0].dtype == mx.float64
