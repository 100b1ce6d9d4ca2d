"""Sizes of activations against closed forms and against docs/background/allostasis.md."""

import numpy as np
import pytest

from kssm_mlx.metrics.amplitude import amplitude, margins, signal, snr_db

rng = np.random.default_rng(0)


def test_behind_a_norm_the_variance_is_the_amplitude():
    """U1; and the pairs (A, sigma²) that were reported at d = 128 follow from A alone (Q4)."""
    x = rng.normal(3, 2, (50, 64))
    x = (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)
    found = amplitude(x)
    assert found.A_norm == pytest.approx(1) and found.sigma2 == pytest.approx(found.A**2 / 63, rel=1e-9)
    for A, sigma2 in [(11.64, 1.067), (11.43, 1.029), (11.41, 1.025), (11.39, 1.022)]:
        assert amplitude(A / 8 * x).sigma2 * 63 / 127 == pytest.approx(sigma2, abs=1e-3)


def test_the_amplitude_of_a_constant_has_no_variance():
    assert amplitude(np.full((4, 9), 2.0)) == (6.0, 2.0, 0.0)


def test_margins_are_signed():
    logits = np.array([[3.0, 1.0, 2.5], [0.0, 5.0, 7.0]])
    np.testing.assert_allclose(margins(logits, np.array([0, 1])), [0.5, -2.0])


@pytest.mark.parametrize("shift, spread", [(2.0, 0.5), (0.5, 2.0), (-1.0, 1.0)])
def test_shift_and_spread_of_the_signal_are_independent(shift, spread):
    """Two answers ±e: x = shift e + spread noise gives A_sig = shift, sigma_sig = spread, d' their ratio."""
    weight = np.array([[1.0, 0.0], [-1.0, 0.0]])
    noise = rng.normal(size=(20_000, 2))
    found = signal(np.array([shift, 0.0]) + spread * noise, weight, np.zeros(20_000, int))
    assert found.A_sig == pytest.approx(shift, abs=0.05) and found.sigma_sig == pytest.approx(
        spread, rel=0.03
    )
    assert found.d_prime == pytest.approx(shift / spread, abs=0.1)
    assert found.margin == pytest.approx(2 * found.A_sig)


def test_a_bias_moves_the_margin_and_not_the_signal():
    own = np.random.default_rng(3)
    x, weight, targets = own.normal(size=(40, 6)), own.normal(size=(2, 6)), own.integers(0, 2, 40)
    plain, biased = signal(x, weight, targets), signal(x, weight, targets, np.array([0.0, 5.0]))
    assert plain[:3] == pytest.approx(biased[:3], rel=1e-12)
    assert abs(plain.margin - biased.margin) > 1e-3


@pytest.mark.parametrize("sigma, decibels", [(1.0, 0.2), (0.3, 11), (2.0, -5.8), (3.0, -9.4), (0.15, 17)])
def test_the_signal_to_noise_ratio_is_that_of_the_clean_signal(sigma, decibels):
    """Signal and noise: the clean values, of a variance that leaves (S + N) / N at 1.02 dB for sigma = 2."""
    clean = rng.normal(size=100_000)
    clean *= np.sqrt(4 * (10**0.102 - 1)) / clean.std()
    assert snr_db(clean, sigma) == pytest.approx(decibels, abs=0.5)
