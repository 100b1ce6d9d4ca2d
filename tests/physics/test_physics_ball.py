"""Truths 21 to 25: populations on spheres, and the maps of the ball that move them."""

from fractions import Fraction

import mlx.core as mx
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from kssm_mlx.errors import ConfigError
from kssm_mlx.oscillators import ball, mobius
from kssm_mlx.oscillators.kuramoto import axial_rotation

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order():
    global RNG
    RNG = np.random.default_rng(5)


def inside(D, n=50, most=0.95):
    x = RNG.standard_normal((n, D))
    return most * RNG.uniform(0, 1, (n, 1)) * x / np.linalg.norm(x, axis=-1, keepdims=True)


def antisymmetric(D, scale=1.0):
    M = scale * RNG.standard_normal((D, D))
    return M - M.T


def sphere_points(D, n):
    """Points and their opposites, so that the mean is 0 exactly."""
    x = RNG.standard_normal((n // 2, D))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return np.concatenate([x, -x])


def solve(f, start, time=1.0):
    def flat(t, y):
        return f(t, y.reshape(start.shape)).ravel()

    found = solve_ivp(flat, (0, time), start.ravel(), rtol=1e-10, atol=1e-12)
    return found.y[:, -1].reshape(start.shape)


@pytest.mark.parametrize("D, tolerance", [(2, 8e-3), (3, 8e-3), (4, 8e-3)])
def test_21_the_ball_is_where_the_oscillators_are(D, tolerance):
    """A changing field and rotation: R and direction of the many are those of the one point."""
    W, fields = antisymmetric(D, 0.4), RNG.standard_normal((2, D))

    def field(t):
        return np.cos(2 * t) * fields[0] + t * fields[1]

    # Quasi-uniform points would do for D = 3 alone; these are random, so the tolerance is 1/sqrt(n).
    x = sphere_points(D, 60_000)
    steps, dt = 20, 1 / 20
    a = np.zeros(D)
    for i in range(steps):
        h = [field((i + s) * dt) for s in (0, 0.5, 1)]
        x = rk4(ball.oscillator_velocity, x, W, h, dt)
        a = rk4(ball.ball_velocity, a, W, h, dt)
    mean = x.mean(axis=0)
    R = np.linalg.norm(mean)
    assert 0.1 < R < 0.99
    assert pytest.approx(float(ball.order_from_ball(np.linalg.norm(a), D)), abs=tolerance) == R
    assert mean @ a / (R * np.linalg.norm(a)) == pytest.approx(1.0, abs=tolerance)


def rk4(f, y, W, h, dt):
    """One step; h: the field at its beginning, middle and end."""
    k1 = f(y, W, h[0])
    k2 = f(y + dt / 2 * k1, W, h[1])
    k3 = f(y + dt / 2 * k2, W, h[1])
    k4 = f(y + dt * k3, W, h[2])
    return y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@pytest.mark.parametrize("D", [2, 3, 5])
def test_22_a_field_alone_is_a_translation(D):
    """The flow of a constant field over unit time is the Möbius translation by its kick, from anywhere."""
    h, start = RNG.standard_normal(D), inside(D, 1)[0]
    flown = solve(lambda t, a: ball.ball_velocity(a, np.zeros((D, D)), 2 * h), start)
    np.testing.assert_allclose(ball.translate(ball.kick(h), start), flown, atol=1e-9)


def test_22_in_the_plane_it_is_the_map_of_the_disc():
    h, v = (RNG.standard_normal((50, 2)), inside(2))
    for kappa in (1.0, 0.4):
        a = np.exp(1j * 0.7) * np.ones(50)
        disc = mobius.act(mobius.kick_leaf(a, h[:, 0] + 1j * h[:, 1], kappa), v[:, 0] + 1j * v[:, 1])
        ours = ball.step(v, np.full((50, 1), 0.7), np.ones((50, 1)), h, kappa)
        np.testing.assert_allclose(ours[:, 0] + 1j * ours[:, 1], disc, atol=1e-12)


def test_22_without_curvature_it_is_a_sum():
    k, v = inside(3), inside(3)
    np.testing.assert_array_equal(ball.translate(ball.kick(k, 0.0), v, 0.0), k + v)
    small = ball.translate(ball.kick(k, 1e-9), v, 1e-9)
    np.testing.assert_allclose(small, k + v, atol=1e-8)


@pytest.mark.parametrize("D", [2, 3, 4])
def test_23_maps_of_the_ball_are_conformal(D):
    """The Jacobian of a translation is its factor times a rotation; of a rotation, a rotation."""
    k, v = inside(D, 1)[0], inside(D, 1)[0]
    J = jacobian(lambda x: ball.translate(k, x), v)
    factor = float(ball.conformal_factor(k, v)[0])
    np.testing.assert_allclose(J @ J.T, factor**2 * np.eye(D), atol=1e-7)


def jacobian(f, v, eps=1e-6):
    return np.stack([(f(v + eps * e) - f(v - eps * e)) / (2 * eps) for e in np.eye(v.size)], axis=1)


@pytest.mark.parametrize("D", [2, 3])
def test_23_translations_and_rotations_keep_hyperbolic_distances(D):
    k, x, y = inside(D), inside(D), inside(D)
    w = RNG.standard_normal((50, 1 if D == 2 else 3))

    def distance(x, y):
        gap = ((x - y) ** 2).sum(-1)
        return np.arccosh(1 + 2 * gap / ((1 - (x**2).sum(-1)) * (1 - (y**2).sum(-1))))

    def move(z):
        return ball.translate(k, ball.rotate(w, z))

    np.testing.assert_allclose(distance(move(x), move(y)), distance(x, y), rtol=1e-8)
    assert (np.linalg.norm(move(x), axis=-1) < 1).all()


def test_23_lorentz_matrices_compose_translations():
    k, j = inside(3, 2)
    v = inside(3)
    both = ball.boost(k) @ ball.boost(j)
    np.testing.assert_allclose(ball.act(both, v), ball.translate(k, ball.translate(j, v)), atol=1e-10)
    np.testing.assert_allclose(ball.act(ball.boost(np.zeros(3)), v), v, atol=1e-12)


@pytest.mark.parametrize("D", [3, 4, 6])
def test_24_the_order_parameter_of_a_point(D):
    """Against the mean of many images of the uniform sphere; the closed form of D = 3 against quadrature."""
    x = sphere_points(D, 200_000)
    for size in (0.1, 0.5, 0.9):
        a = size * np.eye(D)[0]
        mean = ball.translate(a, x).mean(axis=0)[0]
        assert mean == pytest.approx(float(ball.order_from_ball(size, D)), abs=4e-3)
    if D == 3:
        for size in (1e-6, 0.0011, 0.3, 0.95):
            by_sum = ball._order_by_quadrature(np.array(size), 3)
            assert float(ball.order_from_ball(size, 3)) == pytest.approx(float(by_sum), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("size", [1e-8, 3e-4, 9.99e-4, 1.001e-3, 0.05, 0.5, 0.9])
def test_24_the_closed_form_in_exact_fractions(size):
    """Its terms cancel near zero, where a series takes over: both sides of that, by the logarithm's own."""
    s = Fraction(size)
    logarithm = 2 * sum(s ** (2 * k + 1) / (2 * k + 1) for k in range(12 if size < 0.1 else 200))
    exact = (1 + s * s) / (2 * s) - (1 - s * s) ** 2 / (4 * s * s) * logarithm
    assert float(ball.order_from_ball(size, 3)) == pytest.approx(float(exact), rel=1e-11)


def test_24_known_values_and_the_way_back():
    found = ball.order_from_ball(np.array([0.1, 0.5, 0.9]), 3)
    np.testing.assert_allclose(found, [0.1331, 0.6320, 0.9727], atol=1e-4)
    assert ball.order_from_ball(0.4, 2) == 0.4
    for D in (2, 3, 5):
        R = np.array([0.0, 0.2, 0.77, 1.0])
        np.testing.assert_allclose(ball.order_from_ball(ball.ball_from_order(R, D), D), R, atol=1e-9)
    with pytest.raises(ConfigError, match=r"an order parameter is between 0 and 1, got 1\.5"):
        ball.ball_from_order(1.5, 3)


@pytest.mark.parametrize("D", [2, 3])
def test_25_what_is_remembered_depends_on_R_and_the_decay_alone(D):
    """|da_T/da_s| = (1 - |a_T|²)/(1 - |a_s|²) exp(-∫γ (1 + |a|²)/(1 - |a|²) dt), whatever the fields."""
    gamma, W, h = 0.3, antisymmetric(D), RNG.standard_normal(D)
    start = inside(D, 1, 0.6)[0]

    def f(t, y):
        a = y[:D]
        rate = gamma * (1 + a @ a) / (1 - a @ a)
        return np.append(ball.ball_velocity(a, W, np.cos(t) * h) - gamma * a, rate)

    def end(a):
        return solve(f, np.append(a, 0.0))

    final = end(start)
    J = jacobian(lambda a: end(a)[:D], start, 1e-5)
    said = (1 - final[:D] @ final[:D]) / (1 - start @ start) * np.exp(-final[D])
    np.testing.assert_allclose(np.linalg.svd(J)[1], said, rtol=1e-4)


def test_rotations_are_those_of_the_sphere_that_was_there():
    w = np.array([0.0, 0.0, 0.4])
    v = inside(3)
    turned = solve(lambda t, x: x @ np.array(axial_rotation(mx.array(w))).T, v)
    np.testing.assert_allclose(ball.rotate(w, v), turned, atol=1e-5)
    with pytest.raises(ConfigError, match="rotate knows 2 and 3 dimensions, got 4"):
        ball.rotate(w, inside(4))


def test_the_same_lines_run_in_mlx():
    v, h = inside(3), RNG.standard_normal((50, 3))
    w, decay = RNG.standard_normal((50, 3)), RNG.uniform(0, 1, (50, 1))
    ours = ball.step(*(mx.array(x.astype(np.float32)) for x in (v, w, decay, h)))
    np.testing.assert_allclose(np.array(ours), ball.step(v, w, decay, h), atol=1e-5)
    assert mx.isfinite(ball.step(*(mx.zeros(s) for s in ((2, 3), (2, 3), (2, 1), (2, 3))))).all().item()
