"""Truths 18 and 19: the measured order of each method, and oscillators with mass."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.oscillators import mobius
from kssm_mlx.oscillators.integrate import METHODS, flow, integrate
from kssm_mlx.oscillators.kuramoto import Inertial, Phases, mean_field, sphere
from kssm_mlx.oscillators.order import coherence
from tests.support.compiling import compiling
from tests.support.laboratory import f64, random_phases

KURAMOTO = Phases(mean_field)
ORDERS = {"euler": 1, "heun": 2, "rk4": 4, "kick": 1, "strang": 2}


def _population(seed=18, n=6):
    rng = np.random.default_rng(seed)
    return f64(rng.uniform(-np.pi, np.pi, n)), f64(rng.normal(size=n))


def test_18_every_method_is_measured():
    assert set(ORDERS) == set(METHODS)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ORDERS)
def test_18_measured_order(method):
    """Halving dt divides the error by 2^order: 2, 4, 16 for orders 1, 2, 4. Tolerance 9 % of the ratio.

    Self-coupled mean field, N = 6, T = 1, dt = 1/32 and 1/64 against RK4 at 1/256.
    """
    theta, omega = _population()
    exact = flow(KURAMOTO, theta, 1 / 256, 256, (omega, 1.5))
    errors = [
        mx.max(mx.abs(flow(KURAMOTO, theta, 1 / n, n, (omega, 1.5), method=method) - exact)).item()
        for n in (32, 64)
    ]
    assert errors[0] / errors[1] == pytest.approx(2 ** ORDERS[method], rel=1.5 / 16)


def test_18_kick_and_strang_leaves():
    """Of disc maps too: free flow + kick is of first order to the exact hold, half + kick + half second."""
    lam, h, z = np.array([0.9j - 0.2]), np.array([0.5 + 0.4j]), np.array([0.3 - 0.2j])
    exact = mobius.act(mobius.hold_leaf(lam, h, 1.0), z)

    def errors(symmetric):
        for n in (64, 128):
            dt, w = 1 / n, z
            half = np.exp(lam * dt / 2)
            for _ in range(n):
                w = mobius.act(mobius.kick_leaf(half if symmetric else half**2, h * dt), w)
                w = half * w if symmetric else w
            yield np.abs(w - exact).item()

    for symmetric, ratio in ((False, 2), (True, 4)):
        coarse, fine = errors(symmetric)
        assert coarse / fine == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("method", ["heun", "kick"])
def test_18_compiled_steps_are_the_same_steps(method):
    """mx.compile changes nothing but speed: N = 64, 20 steps, 1e-5 (float32)."""
    theta, omega = random_phases(64), mx.random.normal((64,), key=mx.random.key(2))
    plain = flow(KURAMOTO, theta, 0.05, 20, (omega, 2.0), method=method)
    mx.eval(plain)
    with compiling(True):
        compiled = np.array(flow(KURAMOTO, theta, 0.05, 20, (omega, 2.0), method=method))
    np.testing.assert_allclose(compiled, np.array(plain), atol=1e-5)


def test_18_batches_and_records():
    """Leading dimensions are a batch: each row moves as alone. Records hold the start and each 5th step."""
    theta, omega = random_phases(2, 3, 16), mx.random.normal((16,), key=mx.random.key(2))
    K = mx.array([0.5, 1.0, 2.0])[:, None]
    end, record = integrate(KURAMOTO, theta, 0.1, 40, (omega, K), observe=coherence, every=5)
    assert record.shape == (9, 2, 3)
    np.testing.assert_array_equal(np.array(record[0]), np.array(coherence(theta)))
    np.testing.assert_array_equal(np.array(record[-1]), np.array(coherence(end)))
    alone = flow(KURAMOTO, theta[1, 2], 0.1, 40, (omega, 2.0))
    np.testing.assert_allclose(np.array(alone), np.array(end[1, 2]), atol=1e-5)


def test_18_refuses_what_it_cannot_do():
    theta = random_phases(4)
    with pytest.raises(ConfigError, match=r"method 'rk5' is unknown; did you mean 'rk4'\?"):
        flow(KURAMOTO, theta, 0.1, 1, (0.0, 1.0), method="rk5")
    with pytest.raises(ConfigError, match="'kick' splits first-order phase models only"):
        flow(sphere, theta, 0.1, 1, (0.0, 1.0), method="kick")
    with pytest.raises(ConfigError, match="noise was given without a key"):
        flow(KURAMOTO, theta, 0.1, 1, (0.0, 1.0), noise=0.1)


@pytest.mark.usefixtures("float64")
def test_19_energy_falls_by_friction():
    """omega = 0: E = sum m theta'^2 / 2 - K N R^2 / 2 changes at the rate -sum theta'^2.

    N = 20, m = 2, K = 1.3: slope over one RK4 step of 1e-3 forward and back, 1e-5; E never rises over T = 10.
    """
    n, m, K = 20, 2.0, 1.3
    rng = np.random.default_rng(19)
    state, system, args = f64(rng.normal(size=(2, n))), Inertial(mean_field), (0.0, m, K)

    def energy(s):
        return m * mx.sum(s[1] ** 2) / 2 - K * n * coherence(s[0]) ** 2 / 2

    ahead, behind = (flow(system, state, dt, 1, args) for dt in (1e-3, -1e-3))
    slope = (energy(ahead) - energy(behind)).item() / 2e-3
    assert slope == pytest.approx(-mx.sum(state[1] ** 2).item(), rel=1e-5)
    _, record = integrate(system, state, 0.1, 100, args, observe=energy)
    assert np.diff(np.array(record)).max() < 0


@pytest.mark.usefixtures("float64")
def test_19_no_mass_is_first_order():
    """m -> 0 recovers the first-order model, with an error proportional to m: .02 and .01, ratio 2 +- .2."""
    theta, omega = _population(seed=20)
    slow = flow(KURAMOTO, theta, 0.01, 100, (omega, 1.5))
    state = mx.stack([theta, KURAMOTO(theta, omega, f64(1.5))])
    errors = [
        mx.max(mx.abs(flow(Inertial(mean_field), state, 0.005, 200, (omega, m, 1.5))[0] - slow)).item()
        for m in (0.02, 0.01)
    ]
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
