"""Truth 17: Ott-Antonsen populations and Watanabe-Strogatz groups move by maps of the disc.

The maps run in numpy complex128 through the same functions that the models use.
"""

from functools import partial, reduce

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.oscillators import mobius
from kssm_mlx.oscillators.frequencies import Frequencies
from kssm_mlx.oscillators.integrate import RK4, flow, runge_kutta
from kssm_mlx.oscillators.kuramoto import Phases, external
from kssm_mlx.oscillators.mobius import Disc
from kssm_mlx.oscillators.order import harmonics
from tests.support.laboratory import f64

FIELD = Phases(external)


def complex_normal(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def riccati(z, lam, h, kappa):
    """z' = lam z + h - kappa conj(h) z^2, the population in a field."""
    return lam * z + h - kappa * np.conj(h) * z * z


def random_setting(seed, *shape, gamma=0.5):
    rng = np.random.default_rng(seed)
    lam = 1j * rng.normal(size=shape) - rng.uniform(0, gamma, shape)
    z = np.sqrt(rng.uniform(0, 1, shape)) * np.exp(2j * np.pi * rng.uniform(size=shape))
    return lam, complex_normal(rng, *shape), z


@pytest.mark.parametrize("kappa", [1.0, 0.3, 0.0])
def test_17_exact_leaf_against_rk4(kappa):
    """hold_leaf is the flow of z' = lam z + h - kappa conj(h) z^2: 64 lanes, tau = 1, RK4 dt 1/800. 1e-10."""
    lam, h, z = random_setting(17, 64)
    expected = z
    for _ in range(800):
        expected = runge_kutta(RK4, partial(riccati, lam=lam, h=h, kappa=kappa), expected, 1 / 800)
    np.testing.assert_allclose(mobius.act(mobius.hold_leaf(lam, h, 1.0, kappa), z), expected, atol=1e-10)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1.0])
def test_17_exact_leaf_in_single_precision(size):
    """Weak fields lose nothing in complex64: (q, r, d) to 1e-6 relative of complex128."""
    lam, h, _ = random_setting(18, 64)
    lam, h = (size * lam).astype(np.complex64), (size * h).astype(np.complex64)
    single = mobius.hold_leaf(mx.array(lam), mx.array(h), 1.0)
    double = mobius.hold_leaf(lam.astype(complex), h.astype(complex), 1.0)
    for a, b in zip(single, double):
        np.testing.assert_allclose(np.array(a), b, rtol=2e-6)


def test_17_leaf_without_field_or_frequency():
    """s = 0 needs no special case: the map is the identity, exactly."""
    still = mobius.hold_leaf(np.zeros(1, complex), np.zeros(1, complex), 1.0)
    np.testing.assert_array_equal(still, mobius.identity_like(np.zeros(1, complex)))


def hillis_steele(maps: Disc) -> Disc:
    """All prefix products along axis 0 in log2(T) levels, composed in tree order."""
    reach = 1
    while reach < len(maps.q):
        later = mobius.compose(Disc(*(x[reach:] for x in maps)), Disc(*(x[:-reach] for x in maps)))
        maps = Disc(*(np.concatenate([x[:reach], y]) for x, y in zip(maps, later)))
        reach *= 2
    return maps


@pytest.mark.parametrize("gamma, strength", [(0.1, 0.3), (0.5, 2.0), (0.05, 7.0)])
def test_17_scan_against_serial(gamma, strength):
    """Prefix products in tree order move z like step after step, T = 4096. Tolerance 1e-12; |q|, |r| <= 1."""
    lam, h, z = random_setting(19, 4096, gamma=gamma)
    maps = mobius.kick_leaf(np.exp(lam - gamma / 4), strength * h)
    prefix = hillis_steele(maps)
    state = z[0]
    serial = [state := mobius.act(Disc(*(x[t] for x in maps)), state) for t in range(4096)]
    np.testing.assert_allclose(mobius.act(prefix, z[0]), serial, atol=1e-12)
    assert np.abs(prefix.q).max() <= 1 + 1e-12 and np.abs(prefix.r).max() <= 1 + 1e-12


def test_17_bounds_of_every_composite():
    """|q|, |r| <= 1 and |d| <= 1 - |q|^2 (Schwarz-Pick): 512 words of 16 leaves, both tree orders. 1e-12."""
    lam, h, _ = random_setting(20, 16, 512)
    leaves = mobius.hold_leaf(lam, 2 * h, 1.0)
    words = [Disc(*(x[t] for x in leaves)) for t in range(16)]
    later_first = reduce(lambda acc, m: mobius.compose(m, acc), words)
    earlier_first = reduce(lambda acc, m: mobius.compose(acc, m), words[::-1])
    for a, b in zip(later_first, earlier_first):
        np.testing.assert_allclose(a, b, atol=1e-12)
    q, r, d = later_first
    assert np.abs(q).max() <= 1 + 1e-12 and np.abs(r).max() <= 1 + 1e-12
    assert (np.abs(d) <= 1 - np.abs(q) ** 2 + 1e-12).all()


def test_17_population_against_its_oscillators():
    """Z_n = z^n: the scan against RK4 of N = 4000 Lorentzian oscillators, 3 groups, 24 tokens, same fields.

    Tolerance 1e-2 (4e-3 was seen at this N; the rest is finite-N sampling), harmonics 1 to 3.
    """
    rng = np.random.default_rng(21)
    centre, gamma = np.array([0.0, 0.7, -1.2]), np.array([0.1, 0.2, 0.4])
    h = 0.4 * complex_normal(rng, 24, 3)
    omega = np.stack([Frequencies("lorentzian", g, c).quantiles(4000) for g, c in zip(gamma, centre)])
    omega, theta, z = mx.array(omega.astype(np.float32)), mx.zeros((3, 4000)), np.ones(3, complex)
    for field in h:
        x, y = (mx.array(part.astype(np.float32))[:, None] for part in (field.real, field.imag))
        theta = flow(FIELD, theta, 0.05, 20, (omega, x, y))
        theta = theta - 2 * np.pi * mx.round(theta / (2 * np.pi))  # the fastest would run out of float32
        z = mobius.act(mobius.hold_leaf(1j * centre - gamma, field, 1.0), z)
    real, imaginary = harmonics(theta, 3)
    simulated = np.array(real) + 1j * np.array(imaginary)
    np.testing.assert_allclose(simulated, z[:, None] ** np.arange(1, 4), atol=1e-2)


@pytest.mark.usefixtures("float64")
def test_17_identical_oscillators_share_one_map():
    """Watanabe-Strogatz: N = 7 identical phases each move by the same map of the circle. RK4 dt .01, 1e-8."""
    rng = np.random.default_rng(22)
    theta, h = rng.uniform(-np.pi, np.pi, 7), complex_normal(rng)
    moved = flow(FIELD, f64(theta), 0.01, 100, (0.8, f64(h.real), f64(h.imag)))
    expected = mobius.act(mobius.hold_leaf(np.array(0.8j), np.array(h), 1.0), np.exp(1j * theta))
    np.testing.assert_allclose(np.exp(1j * np.array(moved)), expected, atol=1e-8)


@pytest.mark.usefixtures("float64")
def test_17_kick_step_is_the_kick_leaf():
    """One `kick` step of phases is `kick_leaf` on exp(i theta), any step size. Tolerance 1e-12."""
    rng = np.random.default_rng(23)
    theta, h, dt = rng.uniform(-np.pi, np.pi, 9), complex_normal(rng), 0.7
    moved = flow(FIELD, f64(theta), dt, 1, (0.8, f64(h.real), f64(h.imag)), method="kick")
    leaf = mobius.kick_leaf(np.array(np.exp(0.8j * dt)), np.array(h * dt))
    np.testing.assert_allclose(np.exp(1j * np.array(moved)), mobius.act(leaf, np.exp(1j * theta)), atol=1e-12)


def test_17_curvature_zero_is_the_linear_model():
    """kappa = 0: z -> a z + h exactly; kappa = 1 differs from it by less than 3 |h| for a weak field."""
    lam, h, z = random_setting(24, 64)
    a = np.exp(lam)
    np.testing.assert_array_equal(mobius.act(mobius.kick_leaf(a, h, 0.0), z), a * z + h)
    weak = mobius.act(mobius.kick_leaf(a, 1e-4 * h), z) - (a * z + 1e-4 * h)
    assert 0 < np.abs(weak).max() < 3e-4 * np.abs(h).max()


def test_17_memory_of_a_kick_depends_on_R_only():
    """|dz_t / dz_{t-1}| = |a| (1 - R_t^2) / (1 - |a|^2 R_{t-1}^2), whatever the field. 1e-10 on the log."""
    lam, h, z = random_setting(25, 4096)
    leaf = mobius.kick_leaf(np.exp(lam), h)
    after = mobius.act(leaf, z)
    predicted = mobius.log_memory(np.abs(z), np.abs(after), -lam.real)
    np.testing.assert_allclose(np.log(np.abs(mobius.derivative(leaf, z))), predicted, atol=1e-10)


def test_17_memory_of_the_exact_flow_depends_on_R_only():
    """|dz_T / dz_s| = (1 - R_T^2) / (1 - R_s^2) exp(-int gamma (1 + R^2) / (1 - R^2) dt).

    64 lanes, one token of length 1; the integral by Gauss-Legendre with 48 points along the exact flow.
    Tolerance 1e-10 on the log.
    """
    lam, h, z = random_setting(26, 64)
    z, gamma = 0.9 * z, -lam.real
    nodes, weights = np.polynomial.legendre.leggauss(48)
    times, weights = (nodes[:, None] + 1) / 2, weights[:, None] / 2
    square = np.abs(mobius.act(mobius.hold_leaf(lam, h, times), z)) ** 2
    decay = (weights * gamma * (1 + square) / (1 - square)).sum(axis=0)
    leaf = mobius.hold_leaf(lam, h, 1.0)
    after = mobius.act(leaf, z)
    predicted = np.log1p(-(np.abs(after) ** 2)) - np.log1p(-(np.abs(z) ** 2)) - decay
    np.testing.assert_allclose(np.log(np.abs(mobius.derivative(leaf, z))), predicted, atol=1e-10)
