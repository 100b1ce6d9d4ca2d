"""Densities integrate to one, quantiles invert them, draws follow them."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.oscillators.frequencies import FAMILIES, Frequencies

SPREAD = [name for name in FAMILIES if name != "identical"]


@pytest.mark.parametrize("family", SPREAD)
def test_quantiles_invert_the_density(family):
    """The density integrated between two quantiles is the difference of their probabilities. 1e-4."""
    g = Frequencies(family, 0.7, centre=-0.4)
    low, high = g.quantile([0.1, 0.8])
    omega = np.linspace(low, high, 20001)
    mass = np.sum((g.density(omega)[1:] + g.density(omega)[:-1]) / 2) * (omega[1] - omega[0])
    assert mass == pytest.approx(0.7, abs=1e-4)


@pytest.mark.parametrize("family", SPREAD)
def test_quantiles_are_even_and_symmetric(family):
    omega = Frequencies(family, 0.7, centre=-0.4).quantiles(101)
    assert omega.dtype == np.float64 and np.all(np.diff(omega) > 0)
    np.testing.assert_allclose(omega + omega[::-1], -0.8, atol=1e-9)


@pytest.mark.parametrize("family", SPREAD)
def test_samples_follow_the_quantiles(family):
    """20,000 draws within 1.5 % of the distribution (the 99.9 % point is 1.4 %); same key, same draws."""
    g = Frequencies(family, 2.0)
    drawn = np.sort(np.array(g.sample((20000,), mx.random.key(3))))
    np.testing.assert_array_equal(drawn, np.sort(np.array(g.sample((20000,), mx.random.key(3)))))
    p = np.linspace(0.01, 0.99, 99)
    assert np.abs(np.searchsorted(drawn, g.quantile(p)) / 20000 - p).max() < 0.015


def test_identical_is_one_frequency():
    np.testing.assert_array_equal(Frequencies("identical", 1.0, centre=2.0).quantiles(5), 2.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("lorenzian",), "did you mean 'lorentzian'"),
        (("gaussian", 0.0), "must be > 0, got 0.0"),
        (("gaussian", float("nan")), "must be > 0, got nan"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Frequencies(*arguments)
