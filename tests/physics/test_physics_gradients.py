"""Truth 20: gradients through every kernel, against central differences in float64."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.oscillators import mobius, network
from kssm_mlx.oscillators.integrate import METHODS, flow, integrate
from kssm_mlx.oscillators.kuramoto import (
    Inertial,
    Phases,
    axial_rotation,
    external,
    mean_field,
    sakaguchi,
    sphere,
    triadic,
)
from kssm_mlx.oscillators.order import coherence, harmonics, local_order, modulus, order_parameter
from tests.support.compiling import compiling
from tests.support.laboratory import f64, random_phases

N = 5


def _matrices(*shapes):
    rng = np.random.default_rng(7)
    return tuple(f64(rng.normal(size=shape)) for shape in shapes)


SYSTEMS = {
    "external": (Phases(external), (N,), (0.4, -0.3)),
    "mean field": (Phases(mean_field), (N,), (1.5,)),
    "sakaguchi": (Phases(sakaguchi), (N,), (1.5, 0.4)),
    "triadic": (Phases(triadic), (N,), (0.7, 2.0)),
    "matrix": (Phases(network.matrix), (N,), _matrices((N, N))),
    "low rank": (Phases(network.low_rank), (N,), _matrices((N, 2), (N, 2))),
    "ring": (Phases(network.ring), (N,), _matrices((2,))),
    "lagged blocks": (Phases(network.Lagged(network.blocks)), (2, N), (0.3, *_matrices((2, 2)))),
    "inertial": (Inertial(mean_field), (2, N), (0.8, 1.5)),
}


def central_differences(f, arguments, index, step=1e-6):
    """d f / d arguments[index], one entry at a time."""
    flat = np.array(arguments[index]).reshape(-1)
    slopes = np.empty_like(flat)
    for i in range(flat.size):
        values = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[i] += sign * step
            moved = f64(moved.reshape(arguments[index].shape))
            values.append(f(*arguments[:index], moved, *arguments[index + 1 :]).item())
        slopes[i] = (values[0] - values[1]) / (2 * step)
    return slopes.reshape(arguments[index].shape)


def assert_gradients_agree(f, arguments, tolerance=1e-6):
    for i in range(len(arguments)):
        gradient = mx.grad(f, argnums=i)(*arguments)
        expected = central_differences(f, arguments, i)
        assert gradient.shape == arguments[i].shape
        assert np.abs(expected).max() > 1e-4, f"argument {i} does not matter: nothing is tested"
        np.testing.assert_allclose(np.array(gradient), expected, atol=tolerance, rtol=tolerance)


def _probe(shape):
    """A fixed linear functional, so that no gradient is zero by symmetry."""
    return f64(np.random.default_rng(1).normal(size=shape))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SYSTEMS)
def test_20_systems(name):
    """Three RK4 steps of each system: gradients in the state, omega and every parameter. Tolerance 1e-6."""
    system, shape, parameters = SYSTEMS[name]
    rng = np.random.default_rng(20)
    arguments = (
        f64(rng.normal(size=shape)),
        f64(rng.normal(size=N)),
        *(f64(p) for p in map(np.array, parameters)),
    )
    probe = _probe(shape)
    assert_gradients_agree(lambda state, *args: mx.sum(probe * flow(system, state, 0.1, 3, args)), arguments)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", METHODS)
def test_20_methods(method):
    """Five steps of the mean field with each method. Tolerance 1e-6."""
    rng = np.random.default_rng(21)
    arguments = (f64(rng.normal(size=N)), f64(rng.normal(size=N)), f64(1.5))
    probe = _probe(N)

    def f(theta, omega, K):
        return mx.sum(probe * flow(Phases(mean_field), theta, 0.1, 5, (omega, K), method=method))

    assert_gradients_agree(f, arguments)


@pytest.mark.usefixtures("float64")
def test_20_sphere():
    """Three RK4 steps on the sphere of D = 3, in positions, rotations and K. Tolerance 1e-6."""
    rng = np.random.default_rng(22)
    x = rng.normal(size=(N, 3))
    arguments = (f64(x / np.linalg.norm(x, axis=1, keepdims=True)), f64(rng.normal(size=(N, 3))), f64(0.9))
    probe = _probe((N, 3))
    assert_gradients_agree(
        lambda x, w, K: mx.sum(probe * flow(sphere, x, 0.1, 3, (axial_rotation(w), K))), arguments
    )


@pytest.mark.usefixtures("float64")
def test_20_order_parameters():
    """R, Z_n up to 4, and local order. Tolerance 1e-6."""
    theta, weights = f64(np.random.default_rng(23).normal(size=N)), f64(np.arange(1.0, 11.0).reshape(2, N))
    assert_gradients_agree(coherence, (theta,))
    assert_gradients_agree(lambda t: mx.sum(harmonics(t, 4)[0] - 2 * harmonics(t, 4)[1]), (theta,))
    assert_gradients_agree(
        lambda t, w: mx.sum(local_order(t, w)[0] + order_parameter(t)[1]), (theta, weights)
    )


def test_20_coherence_at_the_origin():
    """At Z = 0 the gradient of |Z| is 0, not NaN: one incoherent token cannot poison a training run."""
    origin = mx.zeros(())
    assert modulus(origin, origin).item() == 0
    assert mx.grad(modulus)(origin, origin).item() == 0


@pytest.mark.parametrize("leaf", ["kick", "hold"])
def test_20_disc_maps(leaf):
    """act(leaf(lam, h), z) in complex64 against central differences in complex128. Tolerance 1e-4."""
    rng = np.random.default_rng(24)
    lam, h, z = (
        1j * rng.normal(size=4) - 0.3,
        0.5 * (rng.normal(size=4) + 1j * rng.normal(size=4)),
        0.3 + 0.2j,
    )
    weight = rng.normal(size=4) + 1j * rng.normal(size=4)

    def value(xp, parts):
        a, b, c, d = parts
        m = (
            mobius.kick_leaf(xp.exp(a + 1j * b), c + 1j * d)
            if leaf == "kick"
            else mobius.hold_leaf(a + 1j * b, c + 1j * d, 1.0)
        )
        w = xp.array(weight.astype(np.complex64)) if xp is mx else weight
        return xp.sum(xp.real(w * mobius.act(m, z)))

    parts = [lam.real, lam.imag, h.real, h.imag]
    gradients = mx.grad(lambda *p: value(mx, p), argnums=(0, 1, 2, 3))(
        *(mx.array(p.astype(np.float32)) for p in parts)
    )
    for i, gradient in enumerate(gradients):
        for j in range(4):
            ends = [[p.copy() for p in parts] for _ in range(2)]
            ends[0][i][j] += 1e-6
            ends[1][i][j] -= 1e-6
            expected = (value(np, ends[0]) - value(np, ends[1])) / 2e-6
            assert gradient[j].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("float64")
def test_20_permutation_equivariance():
    """Relabelling the oscillators relabels the gradient. Tolerance 1e-12."""
    rng = np.random.default_rng(25)
    theta, omega = f64(rng.normal(size=8)), f64(rng.normal(size=8))
    order = mx.array([3, 1, 7, 0, 2, 6, 4, 5])
    gradient = mx.grad(lambda t, w: coherence(flow(Phases(mean_field), t, 0.1, 10, (w, 1.5))))
    np.testing.assert_allclose(
        np.array(gradient(theta[order], omega[order])), np.array(gradient(theta, omega)[order]), atol=1e-12
    )


def test_20_gradient_through_integrate():
    """`integrate` evaluates on the way and still gives the gradient of `flow`. Float32, 1e-6."""
    theta, omega = random_phases(16), mx.random.normal((16,), key=mx.random.key(1))
    system = Phases(mean_field)
    long = mx.grad(lambda K: coherence(integrate(system, theta, 0.1, 40, (omega, K))[0]))(mx.array(1.5))
    lazy = mx.grad(lambda K: coherence(flow(system, theta, 0.1, 40, (omega, K))))(mx.array(1.5))
    assert abs(lazy.item()) > 1e-3
    assert long.item() == pytest.approx(lazy.item(), abs=1e-6)


def test_20_flow_inside_transformations():
    """The gradient of `flow` under mx.compile and under mx.vmap is the plain one. Float32, 1e-6."""
    theta, omega = random_phases(3, 16), mx.random.normal((16,), key=mx.random.key(1))

    def loss(theta, K):
        return coherence(flow(Phases(mean_field), theta, 0.1, 2, (omega, K), method="euler"))

    gradient, K = mx.grad(loss, argnums=1), mx.array(1.5)
    plain = [gradient(row, K).item() for row in theta]
    assert min(map(abs, plain)) > 1e-4
    np.testing.assert_allclose(np.array(mx.vmap(gradient, in_axes=(0, None))(theta, K)), plain, atol=1e-6)
    with compiling(True):
        compiled = mx.compile(gradient)
        np.testing.assert_allclose([compiled(row, K).item() for row in theta], plain, atol=1e-6)
