"""Bistable populations: two basins where theory says so and one where it does not, at any time step."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import build
from kssm_mlx.models.base import Clamp, Intervention
from kssm_mlx.models.self_coupled import token_map
from kssm_mlx.oscillators import theory
from kssm_mlx.oscillators.integrate import RK4, runge_kutta
from kssm_mlx.oscillators.planar import Planar
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from tests.support.small_kssm import awake, config, tokens

pytestmark = pytest.mark.usefixtures("uncompiled")
STARTS, G = 32, 4


def bistable(K1: float, K2: float, dt: float = 8.0):
    """A model whose slowest population has a width of 1/8, with time steps of dt: one relaxation each."""
    model = build(config(triadic=(K1, K2), n_groups=G, memory=8, n_layers=1))
    model.blocks[0].mixer.populations.time_step.bias = mx.full((G,), np.log(np.expm1(dt)))
    return model


def starts() -> np.ndarray:
    """32 states [S, G], R from 0.01 to 0.99, any angle."""
    R, psi = np.linspace(0.01, 0.99, STARTS), np.random.default_rng(0).uniform(-np.pi, np.pi, (STARTS, G))
    return R[:, None] * np.exp(1j * psi)


def settled(model, z: np.ndarray, steps: int = 100) -> np.ndarray:
    out = model.free_states(0, steps, mx.array(np.stack([z.real, z.imag], 1), mx.float32))
    return np.array(out[:, 0]) + 1j * np.array(out[:, 1])


@pytest.mark.parametrize("dt, steps", [(1.0, 600), (8.0, 100), (30.0, 100)])
@pytest.mark.parametrize("K1, K2", [(1.0, 8.0), (1.8, 5.0)])
def test_inside_the_window_there_are_two_basins(K1, K2, dt, steps):
    """Clusters more than 0.1 apart, each with over 5 % of 32 starts, each regained after kicks of 1 %."""
    upper, edge = theory.triadic(K1, K2, 1.0)
    assert theory.triadic_saddle_node(K2, 1.0) < K1 < 2 and upper - edge > 0.1
    model, z0 = bistable(K1, K2, dt), starts()
    z = settled(model, z0, steps)
    expected = np.where(np.abs(z0) > edge, upper, 0.0)
    clear = np.abs(np.abs(z0) - edge) > 0.02
    np.testing.assert_allclose(np.abs(z)[clear], expected[clear], atol=2e-3)
    for basin in (expected == 0, expected == upper):
        assert basin.mean() > 0.05
    kicked = z + 0.01 * np.exp(1j * np.random.default_rng(1).uniform(0, 2 * np.pi, z.shape))
    np.testing.assert_allclose(np.abs(settled(model, kicked, steps))[clear], expected[clear], atol=2e-3)


@pytest.mark.parametrize("K1, K2", [(1.0, 2.0), (-0.5, 8.0), (2.6, 8.0), (3.0, 0.0)])
def test_outside_the_window_there_is_one(K1, K2):
    """Below the saddle-node all is incoherent; above 2 gamma incoherence has lost its stability."""
    above = K1 > 2
    assert above or theory.triadic_saddle_node(K2, 1.0) >= K1
    expected = theory.triadic(K1, K2, 1.0)[0] if above else 0.0
    R = np.abs(settled(bistable(K1, K2), starts()))
    np.testing.assert_allclose(R, expected, atol=2e-3)


def test_the_second_basin_ends_at_the_saddle_node():
    """Just inside the coherent state stays where theory has it, just outside it is gone."""
    K2, coherent = 4.0, np.full((1, G), 0.9 + 0j)
    edge = theory.triadic_saddle_node(K2, 1.0)
    inside, outside = (np.abs(settled(bistable(edge + d, K2), coherent, 300)) for d in (0.05, -0.05))
    np.testing.assert_allclose(inside, theory.triadic(edge + 0.05, K2, 1.0)[0], atol=2e-3)
    assert outside.max() < 1e-3


def test_without_self_coupling_every_population_forgets():
    model = build(config(n_groups=G, memory=8, n_layers=1))
    assert np.abs(settled(model, starts())).max() < 1e-4


def test_many_short_tokens_are_the_equation():
    """Against RK4 in float64 under a constant field; the gap is first order in the time step."""
    rng = np.random.default_rng(0)
    omega, gamma, h = 1.3, 0.2, 0.1 - 0.05j
    K1, K2 = 0.3, 1.1
    z0 = 0.9 * rng.uniform(size=8) * np.exp(2j * np.pi * rng.uniform(size=8))

    def velocity(z):
        H = h + (K1 + K2 * np.abs(z) ** 2) * z / 2
        return (1j * omega - gamma) * z + H - np.conj(H) * z**2

    exact = z0
    for _ in range(400):
        exact = runge_kutta(RK4, velocity, exact, 0.01)

    def gap(dt: float) -> float:
        z, turn = (
            Planar(mx.array(z0.real, mx.float32), mx.array(z0.imag, mx.float32)),
            np.exp(1j * omega * dt),
        )
        rates = [mx.array(x) for x in (dt, gamma, K1, K2)]
        for _ in range(round(4 / dt)):
            z = token_map(z * Planar(float(turn.real), float(turn.imag)), Planar(h.real, h.imag), *rates)
        return np.abs(np.array(z.re) + 1j * np.array(z.im) - exact).max()

    assert gap(0.02) < 0.02
    assert gap(0.02) == pytest.approx(gap(0.04) / 2, rel=0.15)


def test_states_stay_in_the_disc_under_strong_fields():
    model = awake("bistable")
    for block in model.blocks:
        block.mixer.populations.field.weight = 30 * block.mixer.populations.field.weight
    trace = model.forward(tokens(2, 60)).trace
    assert 0.99 < trace["block00/R"].max().item() <= 1 + 1e-4
    assert all(mx.isfinite(value).all().item() for value in trace.values())


def test_a_token_decides_and_the_population_remembers():
    """Pushed over the edge once, by a clamp on one token, it is there 60 silent tokens later."""
    model, silent = bistable(1.0, 8.0), mx.zeros((1, 60), mx.int32)
    model.embedding.weight = mx.zeros_like(model.embedding.weight)
    upper, edge = theory.triadic(1.0, 8.0, 1.0)
    for start, end in ((edge + 0.05, upper), (edge - 0.05, 0.0)):
        push = Intervention((Clamp("R", start, stop=1, where="state"),))
        R = model.forward(silent, intervention=push).trace["block00/R"]
        np.testing.assert_allclose(R[0, -1], end, atol=2e-3)


def test_lyapunov_is_half_the_logarithm_of_the_determinant():
    populations = awake("bistable").blocks[0].mixer.populations
    u = mx.random.normal((2, 4, 16), key=mx.random.key(1))
    z0 = Planar(*(0.3 * mx.random.normal((2, 8), key=mx.random.key(k)) for k in (2, 3)))
    h, dt = populations.drive(u, None)
    z = populations.evolve(h, dt, z0)
    got = populations.lyapunov(z, z0, h, dt)
    for t in range(4):
        before = z0 if t == 0 else z.map(lambda x, t=t: x[:, t - 1])
        one = lambda x, t=t: x[:, t : t + 1]  # noqa: E731

        def step(re, im, one=one):
            after = populations.evolve(h.map(one), one(dt), Planar(re, im))
            return [after.re[:, 0], after.im[:, 0]]

        ones, none = mx.ones_like(before.re), mx.zeros_like(before.re)
        rows = [mx.vjp(step, [before.re, before.im], list(c))[1] for c in ((ones, none), (none, ones))]
        (a, b), (c, d) = rows
        np.testing.assert_allclose(got[:, t], np.log(np.abs(np.array(a * d - b * c))) / 2, atol=1e-4)


def test_it_trains_and_every_gradient_is_finite():
    model = awake("bistable")
    train = Train(steps=4, batch_size=4, context=12, warmup=1)
    step, state = make_step(model, train, compile=False), initial_state(model, train)
    for i in range(3):
        ids = tokens(4, 13, seed=i).astype(mx.int32)
        resets = mx.broadcast_to(mx.arange(12) == 5, (4, 12))
        state, metrics = step(state, ids, resets)
        assert all(mx.isfinite(value).item() for value in metrics.values()) and metrics["skipped"].item() == 0
    moved = dict(tree_flatten(state.params))["blocks.0.mixer.populations.self_coupling"]
    assert mx.abs(moved - model.blocks[0].mixer.populations.self_coupling).min().item() > 0


def test_another_flow_beside_it_is_refused():
    for other in ({"kappa": 0.5}, {"leaf": "hold"}):
        with pytest.raises(ConfigError, match="triadic has a flow of its own"):
            config(triadic=(1.0, 8.0), **other)
