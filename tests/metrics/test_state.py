"""Measures of a state on states whose answer is known, and on the random one that fooled the old measures."""

import math

import numpy as np
import pytest

from kssm_mlx.metrics import state


def leaky(rho: float, n: int = 64, T: int = 400, seed: int = 0) -> np.ndarray:
    """s_t = rho s_{t-1} + noise, from its stationary distribution on. Shapes: [2, T, n]."""
    random = np.random.default_rng(seed)
    states = [random.standard_normal((2, n)) / math.sqrt(1 - rho**2)]
    for _ in range(T - 1):
        states.append(rho * states[-1] + random.standard_normal((2, n)))
    return np.stack(states, axis=1)


@pytest.mark.parametrize("rho", [0.25, 0.9, 0.99])
def test_retention_is_the_factor_per_token(rho):
    gaps = 3.0 * rho ** np.arange(9)
    assert state.retention(gaps) == pytest.approx(rho)
    assert state.half_life(rho) == pytest.approx(math.log(2) / -math.log(rho))


def test_half_lives_at_the_ends():
    assert [state.half_life(rho) for rho in (0.0, 1.0, 1.1)] == [0.0, math.inf, math.inf]
    assert math.isnan(state.half_life(math.nan)) and math.isnan(state.retention(np.array([1.0, math.nan])))
    assert state.retention(np.zeros(9)) == 0.0


def test_the_cosine_of_a_random_state_is_its_retention():
    """The audit: a low cosine is what forgetting gives, too."""
    assert state.consecutive_cosine(leaky(0.25)) == pytest.approx(0.25, abs=0.02)
    assert state.consecutive_cosine(leaky(0.99)) == pytest.approx(0.99, abs=0.01)


@pytest.mark.parametrize("n", [16, 256, 4096])
def test_entropy_knows_no_size(n):
    random = np.random.default_rng(0).standard_normal((200, n))
    assert state.energy_entropy(random) == pytest.approx(1 - 0.73 / math.log(n), abs=0.04)
    assert state.energy_entropy(1e-6 * random) == pytest.approx(state.energy_entropy(random))
    assert state.energy_entropy(np.eye(n)[:5]) == 0
    assert state.energy_entropy(np.ones((2, n))) == pytest.approx(1)


def test_rank_counts_directions():
    random = np.random.default_rng(0)
    rows, columns = np.linalg.qr(random.standard_normal((300, 4)))[0], random.standard_normal((4, 50))
    orthonormal = np.linalg.qr(columns.T)[0].T
    sigma = state.spectrum((rows - rows.mean(axis=0)) @ orthonormal)
    assert state.effective_rank(sigma) == pytest.approx(4, abs=0.1)
    assert state.top_share(sigma, 4) == pytest.approx(1, abs=1e-5)
    assert state.effective_rank(state.spectrum(np.ones((10, 5)))) == 0


def test_the_spectrum_is_that_of_the_svd():
    states = np.random.default_rng(0).standard_normal((3, 5, 40))
    flat = states.reshape(15, 40)
    expected = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)
    assert state.spectrum(states) == pytest.approx(expected, abs=1e-6)


def test_nan_is_no_rank_and_no_life():
    states = np.full((2, 3, 4), np.nan)
    assert math.isnan(state.effective_rank(state.spectrum(states))) and state.dead_share(states) == 1


def test_dead_entries_are_counted():
    states = np.random.default_rng(0).standard_normal((2, 50, 10))
    states[..., :7] = 2.0
    assert state.dead_share(states) == pytest.approx(0.7)


def test_updates_are_relative():
    states = np.array([[[1.0], [3.0], [3.0], [0.0], [2.0]]])
    assert state.updates(states).tolist() == [[2.0, 0.0, 1.0, 0.0]]


def test_W_is_rank_times_selective_tokens():
    """One token in ten turns the state, the others keep it."""
    random, states = np.random.default_rng(0), np.zeros((1, 200, 8))
    for t in range(1, 200):
        states[0, t] = random.standard_normal(8) if t % 10 == 0 else states[0, t - 1] * 1.001
    rank = state.effective_rank(state.spectrum(states))
    assert state.worldview(states) == pytest.approx(rank * 0.09, rel=0.06)


@pytest.mark.parametrize(
    "accuracy, tau",
    [
        ({8: 0.9, 32: 0.9, 96: 0.9}, math.inf),
        ({8: 0.9, 32: 0.5, 96: 0.1}, 32.0),
        ({8: 0.9, 32: 0.1}, 20.0),
        ({8: 0.1, 32: 0.1}, 0.0),
    ],
)
def test_tau_is_where_half_is_left(accuracy, tau):
    assert state.reach(accuracy, chance=0.1) == pytest.approx(tau)


def test_eta_is_what_only_the_important_has():
    assert state.selectivity(0.8, 0.2) == pytest.approx(0.75) and state.selectivity(0.0, 0.2) == 0


def test_entropy_and_rank_are_of_the_last_axis():
    """Two rows of three tokens with four entries each: no other axis is that long."""
    one = np.zeros((2, 3, 4))
    one[..., 1] = np.arange(1, 7).reshape(2, 3)
    assert state.energy_entropy(one) == pytest.approx(0, abs=1e-12)
    assert state.effective_rank(state.spectrum(one)) == pytest.approx(1)
    assert state.energy_entropy(np.ones((2, 3, 4))) == pytest.approx(1)


def test_the_share_of_the_five_largest():
    assert state.top_share(np.ones(10)) == pytest.approx(0.5)
    assert state.top_share(np.ones(10), k=1) == pytest.approx(0.1)
    assert math.isnan(state.top_share(np.zeros(3)))
