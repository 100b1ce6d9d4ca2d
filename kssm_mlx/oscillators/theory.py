"""Closed forms for infinite populations, in numpy float64: what tests and reports hold simulations against.

K is the coupling, R the order parameter in the stable steady state, gamma / sigma / delta the width of the
frequency distribution, D the noise. Where a branch does not exist the answer is 0 (incoherence) or NaN, as
said; outside the domain of a formula it is a ConfigError that says the domain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kssm_mlx.errors import ConfigError

LARGE = 1e6  # argument of a Bessel function from which its expansion is exact to float64


def _require(holds: bool, formula: str, domain: str) -> None:
    """Raises: ConfigError outside the domain of a formula; NaN is outside of every domain."""
    if not holds:
        raise ConfigError(f"{formula} is defined for {domain}")


def _bessel_sum(x: float) -> float:
    """exp(-x) (I0(x) + I1(x)), also where the library's own functions give up (x > 1e9)."""
    from scipy.special import ive

    if x > LARGE:
        return float(np.sqrt(2 / (np.pi * x)) * (1 - 1 / (8 * x)))
    return float(ive(0, x) + ive(1, x))


def _bessel_ratio(x: float) -> float:
    """I1(x) / I0(x)."""
    from scipy.special import ive

    return 1 - 1 / (2 * x) - 1 / (8 * x**2) if x > LARGE else float(ive(1, x) / ive(0, x))


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq

    root: Any = brentq(f, low, high, xtol=1e-14)
    return float(root)


def two_oscillators(detuning: float, K: float) -> tuple[float, float]:
    """(R when locked else NaN, beat frequency when drifting else 0) of a pair at +-detuning / 2.

    Source: Pikovsky, Rosenblum & Kurths 2001 (Adler equation).
    """
    _require(K >= 0 and (K > 0 or abs(detuning) > 0), "two_oscillators", "K >= 0, and K > 0 without detuning")
    if abs(detuning) <= K:
        return float(np.cos(np.arcsin(detuning / K) / 2)), 0.0
    return float("nan"), float(np.sqrt(detuning**2 - K**2))


def lorentzian(K: float, gamma: float) -> float:
    """R = sqrt(1 - 2 gamma / K) above K_c = 2 gamma >= 0. Source: Kuramoto 1975."""
    _require(gamma >= 0 and not np.isnan(K), "lorentzian", "gamma >= 0 and a number K")
    return float(np.sqrt(1 - 2 * gamma / K)) if 2 * gamma < K else 0.0


def lorentzian_transient(t: np.ndarray, K: float, gamma: float, R0: float) -> np.ndarray:
    """R(t) from the Ott-Antonsen state with R(0) = R0. Source: Ott & Antonsen 2008."""
    _require(K > 0 and gamma >= 0 and 0 < R0 <= 1, "lorentzian_transient", "K > 0, gamma >= 0, 0 < R0 <= 1")
    if 2 * gamma == K:  # the limit of the formula: algebraic decay
        return R0 / np.sqrt(1 + K * R0**2 * np.asarray(t))
    limit = 1 - 2 * gamma / K
    return np.sqrt(limit / (1 + (limit / R0**2 - 1) * np.exp(-(K - 2 * gamma) * np.asarray(t))))


def gaussian(K: float, sigma: float) -> float:
    """R with 1 = (K / sigma) sqrt(pi / 8) exp(-x) (I0(x) + I1(x)), x = (K R / sigma)^2 / 4, above K_c.

    Source: Kuramoto 1975 (self-consistency); Strogatz 2000 (review).
    """
    _require(sigma > 0 and np.isfinite(K), "gaussian", "sigma > 0 and a finite K")
    K = K / sigma

    def excess(R: float) -> float:
        return K * np.sqrt(np.pi / 8) * _bessel_sum((K * R) ** 2 / 4) - 1

    if excess(0.0) <= 0:
        return 0.0
    return _root(excess, 0.0, 1.0) if excess(1.0) < 0 else 1.0


def uniform(K: float, delta: float) -> float:
    """R of a uniform density on [-delta, delta]: 0 below K_c = 4 delta / pi, pi / 4 at it, then a rise.

    Source: Pazo 2005.
    """
    _require(delta > 0 and np.isfinite(K), "uniform", "delta > 0 and a finite K")
    K = K / delta
    if 4 / np.pi > K:
        return 0.0

    def excess(force: float) -> float:  # force = K R / delta >= 1: even the fastest oscillator is held
        edge = 1 / force
        return (np.sqrt(1 - edge**2) + force * np.arcsin(edge)) / 2 - force / K

    return _root(excess, 1.0, K) / K if excess(1.0) > 0 else float(np.pi / 4)


def incoherent_fluctuation(K: float, critical: float) -> float:
    """N <R^2> below threshold for Lorentzian frequencies, 1 / (1 - K / K_c); other densities differ in shape.

    Linear response of the incoherent state: shot noise over |1 - K chi|^2, integrated over frequency.
    Source: Daido 1990; Hildebrand, Buice & Chow 2007.
    """
    _require(critical > 0 and critical > K, "incoherent_fluctuation", "K below a positive threshold")
    return 1 / (1 - K / critical)


def sakaguchi(K: float, alpha: float, gamma: float) -> tuple[float, float]:
    """(R, Omega - omega_0) with phase lag alpha; incoherent (0, 0) where K cos(alpha) <= 2 gamma.

    R^2 = 1 - 2 gamma / (K cos alpha), Omega = omega_0 - (K / 2) sin(alpha) (1 + R^2).
    Source: Sakaguchi & Kuramoto 1986; Ott & Antonsen 2008.
    """
    _require(bool(np.isfinite([K, alpha, gamma]).all()), "sakaguchi", "finite K, alpha and gamma")
    R = lorentzian(K * np.cos(alpha), gamma)
    return R, float(-K / 2 * np.sin(alpha) * (1 + R**2)) if R else 0.0


def triadic(K1: float, K2: float, gamma: float) -> tuple[float, float]:
    """(stable R, unstable R) of the coherent pair of states; NaN where one does not exist.

    R^2 = (K2 - K1 +- sqrt((K1 + K2)^2 - 8 gamma K2)) / (2 K2).
    Incoherence is stable as well while K1 < 2 gamma.
    Source: Skardal & Arenas 2020.
    """
    _require(gamma >= 0 and K2 >= 0 and np.isfinite(K1 + K2), "triadic", "gamma >= 0, K2 >= 0, finite K1, K2")
    if K2 == 0:
        return lorentzian(K1, gamma), float("nan")
    spread, gap = np.sqrt(complex((K1 + K2) ** 2 - 8 * gamma * K2)), K2 - K1
    # The root whose terms have one sign is computed, the other follows from their product: no cancellation.
    large = (gap + spread if gap >= 0 else gap - spread) / (2 * K2)
    small = (2 * gamma - K1) / K2 / large if large else 0j
    squares = (large, small) if gap >= 0 else (small, large)
    real = [float(np.sqrt(s.real)) if s.imag == 0 and 0 <= s.real <= 1 else float("nan") for s in squares]
    return real[0], real[1]


def triadic_saddle_node(K2: float, gamma: float) -> float:
    """The K1 at which the coherent pair is born, -K2 + 2 sqrt(2 gamma K2)."""
    _require(gamma >= 0 and K2 >= 0, "triadic_saddle_node", "gamma >= 0 and K2 >= 0")
    return float(-K2 + 2 * np.sqrt(2 * gamma * K2))


def noisy(K: float, D: float) -> float:
    """R = I1(K R / D) / I0(K R / D) for identical oscillators with noise, above K_c = 2 D.

    Source: Sakaguchi 1988; Bertini, Giacomin & Pakdaman 2010.
    """
    _require(D >= 0 and np.isfinite(K), "noisy", "D >= 0 and a finite K")
    if K <= 2 * D:
        return 0.0
    if D == 0:
        return 1.0

    def excess(R: float) -> float:
        return _bessel_ratio(K * R / D) - R

    return _root(excess, 1e-6, 1.0) if excess(1.0) < 0 else 1.0


def sphere_onset(dimensions: int) -> float:
    """R as K -> 0+ with isotropic random rotations: the mean |cosine| to a fixed axis for odd D, 0 for even.

    D = 3 gives 1/2. Source: Chandra, Girvan & Ott 2019.
    """
    from scipy.special import gamma

    _require(dimensions >= 2, "sphere_onset", "2 dimensions or more")
    if dimensions % 2 == 0:
        return 0.0
    return float(gamma(dimensions / 2) / (np.sqrt(np.pi) * gamma((dimensions + 1) / 2)))


def sphere(K: float, sigma: float) -> float:
    """R on the sphere of D = 3 with rotation vectors normal of deviation sigma per component, K > 0.

    In the field f = K R an agent of speed w whose axis makes the cosine c with rho rests where its
    projection b on f solves b^4 + (w^2 - f^2) b^2 = (f w c)^2; R is the mean of b / f over axes and speeds.
    """
    _require(K > 0 and sigma > 0 and np.isfinite(K), "sphere", "finite K > 0 and sigma > 0")
    cosine, share = np.polynomial.legendre.leggauss(64)
    speed = sigma * np.sqrt(2 * np.polynomial.laguerre.laggauss(64)[0])
    weight = np.polynomial.laguerre.laggauss(64)[1] * speed
    weight = weight / weight.sum()
    c, w = (cosine[:, None] + 1) / 2, speed[None, :]

    def excess(R: float) -> float:
        f = K * R
        gap, cross = f**2 - w**2, (2 * f * w * c) ** 2
        root = np.sqrt(gap**2 + cross)
        # For agents faster than the field gap + root cancels; its conjugate does not.
        squared = np.where(gap >= 0, gap + root, cross / (root + np.abs(gap)))
        return float(share @ np.sqrt(squared / 2) @ weight) / (2 * f) - R

    return _root(excess, 1e-6, 1.0) if excess(1.0) < 0 else 1.0


class Chimera(NamedTuple):
    """Two populations, one locked (R = 1): the other's r, the phase between them, the eigenvalues."""

    r: float
    psi: float
    eigenvalues: np.ndarray


def chimera_velocity(r: float, psi: float, A: float, beta: float) -> np.ndarray:
    """(r', psi') of the drifting population; psi is its mean phase behind the locked one's.

    Coupling mu = (1 + A) / 2 inside, nu = (1 - A) / 2 across, lag alpha = pi / 2 - beta.
    Source: Abrams, Mirollo, Strogatz & Wiley 2008.
    """
    mu, nu, alpha = (1 + A) / 2, (1 - A) / 2, np.pi / 2 - beta
    rise = (1 - r**2) / 2 * (mu * r * np.cos(alpha) + nu * np.cos(psi - alpha))
    turn = (1 + r**2) / (2 * r) * (mu * r * np.sin(alpha) - nu * np.sin(psi - alpha))
    return np.array([rise, turn - mu * np.sin(alpha) - nu * r * np.sin(psi + alpha)])


def chimera(A: float, beta: float, guess: tuple[float, float] = (0.7, 0.2)) -> Chimera:
    """The fixed point of `chimera_velocity` near the guess (r, psi), with the eigenvalues of its Jacobian."""
    from scipy.optimize import fsolve

    found: Any = fsolve(lambda x: chimera_velocity(x[0], x[1], A, beta), guess, xtol=1e-13)
    r, psi = map(float, found)
    # Central differences lose half of the digits, and an eigenvalue is wanted to six.
    step = 1e-6
    columns = [
        (chimera_velocity(r + a, psi + b, A, beta) - chimera_velocity(r - a, psi - b, A, beta)) / (2 * step)
        for a, b in ((step, 0.0), (0.0, step))
    ]
    return Chimera(r, psi, np.linalg.eigvals(np.stack(columns, axis=1)))
