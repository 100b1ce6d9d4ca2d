"""Natural frequencies: three densities, their quantiles, and the coupling at which they begin to synchronise.

`quantiles` spreads N frequencies evenly through the distribution: a finite population then follows the
infinite-N theory with an error near 1/N, where random draws give 1/sqrt(N). Both are set-up data, so numpy
float64 is returned by `quantiles` and float32 mlx by `sample`.

Units: radians per unit time. Width is gamma (half width at half maximum) for lorentzian, sigma (standard
deviation) for gaussian, Delta (half of the support) for uniform; identical ignores it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.errors import ConfigError, nearest


class Family(NamedTuple):
    """A symmetric density of unit width about 0, and the inverse of its distribution function."""

    density: Callable[[np.ndarray], np.ndarray]
    quantile: Callable[[np.ndarray], np.ndarray]


def _normal_quantile(p: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri

    return ndtri(p)


FAMILIES: dict[str, Family] = {
    "lorentzian": Family(lambda x: 1 / (np.pi * (1 + x**2)), lambda p: np.tan(np.pi * (p - 0.5))),
    "gaussian": Family(lambda x: np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), _normal_quantile),
    "uniform": Family(lambda x: np.where(np.abs(x) <= 1, 0.5, 0.0), lambda p: 2 * p - 1),
    "identical": Family(lambda x: np.where(x == 0, np.inf, 0.0), np.zeros_like),
}


@dataclass(frozen=True)
class Frequencies:
    """A distribution of natural frequencies. Raises: ConfigError for an unknown family or a width <= 0."""

    family: str
    width: float = 1.0
    centre: float = 0.0

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ConfigError(
                f"frequency distribution {self.family!r} is unknown{nearest(self.family, FAMILIES)}; "
                f"the distributions are {', '.join(FAMILIES)}"
            )
        if not (self.width > 0 and np.isfinite(self.width)):
            raise ConfigError(f"the width of a frequency distribution must be > 0, got {self.width}")

    def density(self, omega: np.ndarray | float) -> np.ndarray:
        """g(omega); integrates to 1."""
        return FAMILIES[self.family].density((np.asarray(omega) - self.centre) / self.width) / self.width

    def quantile(self, p: np.ndarray) -> np.ndarray:
        """The frequency below which a share p of the population lies, 0 < p < 1."""
        return self.centre + self.width * FAMILIES[self.family].quantile(np.asarray(p, dtype=np.float64))

    def quantiles(self, n: int) -> np.ndarray:
        """N evenly spread frequencies, F^-1((2 j - 1) / 2 N). Shapes: -> float64 [n], ascending."""
        return self.quantile((np.arange(n) + 0.5) / n)

    def sample(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        """Independent draws. Shapes: -> float32 `shape`."""
        p = mx.random.uniform(low=2**-24, high=1 - 2**-24, shape=shape, key=key)
        return mx.array(self.quantile(np.array(p)), dtype=mx.float32)

    @property
    def critical_coupling(self) -> float:
        """K_c = 2 / (pi g(centre)), where incoherence loses stability; 0 for identical frequencies.

        Truth: 2 gamma (lorentzian), sqrt(8 / pi) sigma (gaussian), 4 Delta / pi (uniform).
        Source: Kuramoto 1984.
        """
        return float(2 / (np.pi * self.density(self.centre)))
