"""The closed forms at the ends of their domains, where a formula as written loses its digits, and outside."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.oscillators import theory
from kssm_mlx.oscillators.simulate import prepare, simulate


def test_a_weak_field_on_the_sphere_leaves_one_half():
    """Chandra, Girvan & Ott 2019: R jumps to 1/2 at K = 0+ in three dimensions."""
    found = [theory.sphere(K, 1.0) for K in (1e-2, 1e-3, 1e-4)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(theory.sphere_onset(3), abs=1e-4)


@pytest.mark.parametrize("ratio", [1e3, 7e4, 1e6, 1e12])
def test_a_strong_coupling_of_gaussian_frequencies_locks_all(ratio):
    """1 - R = (sigma / K)^2 / 2 to leading order: everybody is locked, at an angle of omega / K."""
    R = theory.gaussian(ratio, 1.0)
    assert pytest.approx(0.5 / ratio**2, rel=1e-2, abs=1e-12) == 1 - R and R <= 1


@pytest.mark.parametrize("D", [1e-3, 1e-9, 1e-30, 0.0])
def test_without_noise_identical_oscillators_lock(D):
    """1 - R = D / (2 K) to leading order."""
    assert 1 - theory.noisy(1.0, D) == pytest.approx(D / 2, rel=1e-2, abs=1e-15)


@pytest.mark.parametrize("K2", [1e-15, 1e-9, 1e-3])
@pytest.mark.parametrize("gamma", [0.1, 0.3, 0.49])
def test_a_weak_triadic_term_gives_the_pairwise_branch(K2, gamma):
    assert theory.triadic(1.0, K2, gamma)[0] == pytest.approx(
        theory.lorentzian(1.0, gamma), rel=2 * K2 + 1e-12
    )


@pytest.mark.parametrize(
    "K1, K2, gamma", [(1.0, 8.0, 1.0), (-1.0, 9.0, 1.0), (3.0, 2.0, 1.0), (0.5, 6.0, 0.5)]
)
def test_the_triadic_states_are_at_rest(K1, K2, gamma):
    """Both branches solve R' = 0 = -gamma R + (K1 R + K2 R^3)(1 - R^2) / 2 of the Ott-Antonsen equation."""
    for R in theory.triadic(K1, K2, gamma):
        if not math.isnan(R):
            assert -gamma * R + (K1 * R + K2 * R**3) * (1 - R**2) / 2 == pytest.approx(0, abs=1e-12)


def test_the_transient_at_the_threshold_is_the_limit_of_those_beside_it():
    t = np.linspace(0, 20, 5)
    beside = [theory.lorentzian_transient(t, 1 + e, 0.5, 0.9) for e in (1e-7, -1e-7)]
    assert theory.lorentzian_transient(t, 1.0, 0.5, 0.9) == pytest.approx(np.mean(beside, axis=0), rel=1e-6)


@pytest.mark.parametrize(
    "call, domain",
    [
        (lambda: theory.two_oscillators(0, 0), "K > 0 without detuning"),
        (lambda: theory.two_oscillators(1, -1), "K >= 0"),
        (lambda: theory.lorentzian(1, -0.1), "gamma >= 0"),
        (lambda: theory.lorentzian(math.nan, 0.1), "a number K"),
        (lambda: theory.lorentzian_transient(np.zeros(1), 1, 0.1, 0), "0 < R0"),
        (lambda: theory.gaussian(1, 0), "sigma > 0"),
        (lambda: theory.uniform(1, 0), "delta > 0"),
        (lambda: theory.uniform(math.inf, 1), "finite K"),
        (lambda: theory.incoherent_fluctuation(2, 2), "below a positive threshold"),
        (lambda: theory.sakaguchi(1, math.nan, 1), "finite K, alpha"),
        (lambda: theory.triadic(1, -1, 0.1), "K2 >= 0"),
        (lambda: theory.triadic_saddle_node(-1, 1), "K2 >= 0"),
        (lambda: theory.noisy(1, -1), "D >= 0"),
        (lambda: theory.sphere_onset(1), "2 dimensions"),
        (lambda: theory.sphere(0, 1), "K > 0"),
        (lambda: theory.sphere(1, 0), "sigma > 0"),
    ],
)
def test_outside_its_domain_a_formula_says_so(call, domain):
    with pytest.raises(ConfigError, match=domain):
        call()


def test_an_unstable_step_is_refused_with_one_that_works():
    with pytest.raises(ConfigError, match=r"dt 0.05 is unstable for mass 0.017 .* take --dt 0.024"):
        prepare("inertial", mass=0.017)
    found = simulate(prepare("inertial", mass=0.017, dt=0.024, time=2.0, n=16))
    assert np.isfinite(found.R).all()


def test_a_result_that_is_not_finite_is_an_error(monkeypatch):
    from kssm_mlx.oscillators import simulate as module

    monkeypatch.setattr(module, "STABLE", {})
    with pytest.raises(ConfigError, match=r"R is not finite: dt 0.05 is too long a step; take --dt 0.013"):
        simulate(prepare("inertial", mass=0.002, n=16))


@pytest.mark.parametrize(
    "options, remedy",
    [
        ({"n": 10**11}, "take --n 268435456"),
        ({"n": 2, "time": 1e12}, "take less time"),
        ({"seed": 2**63}, "seed must be between 0 and"),
    ],
)
def test_what_no_machine_can_do_is_refused_before_it_is_tried(options, remedy):
    with pytest.raises(ConfigError, match=remedy):
        prepare("mean-field", **options)


@pytest.mark.parametrize("dimensions, mean", [(3, 1 / 2), (4, 0), (5, 3 / 8), (7, 5 / 16)])
def test_the_onset_on_spheres_is_the_mean_cosine(dimensions, mean):
    assert theory.sphere_onset(dimensions) == pytest.approx(mean)


def test_uniform_frequencies_jump_at_their_threshold():
    below, above = (theory.uniform(K * 4 / math.pi, 1.0) for K in (0.999, 1.001))
    assert below == 0 and above > math.pi / 4
