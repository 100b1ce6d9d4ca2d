"""Kuramoto dynamics as pure functions: a coupling is a field, a system is what the field does to a phase.

Every first-order model here has the form

    theta_i' = omega_i + 2 Im(h_i exp(-i theta_i))

and differs only in the field h, which depends on the unit vectors (cos theta, sin theta) of the others. A
*field* is therefore a function `field(cos, sin, *parameters) -> (Re h, Im h)`; `Phases(field)` is the
right-hand side that `integrate` takes. The classical mean field is h = K Z / 2: two reductions and no N x N
array.

Sines and cosines are real on purpose: complex64 exponentials are slower and have no float64 twin in MLX.

Shapes: phases [..., N]; parameters broadcast against [..., N], so a sweep over K is a K of shape [S, 1].
Units: theta in radians; omega, K in radians per unit time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from kssm_mlx.oscillators.order import Pair, mean_vector, unit_vector

Field = Callable[..., Pair]


def turn(h: Pair, angle: mx.array) -> Pair:
    """h exp(i angle)."""
    cos, sin = unit_vector(angle)
    return h[0] * cos - h[1] * sin, h[0] * sin + h[1] * cos


def velocity(cos: mx.array, sin: mx.array, omega: mx.array | float, h: Pair) -> mx.array:
    """omega + 2 Im(h exp(-i theta)): the speed of phases in the field h."""
    return omega + 2 * (h[1] * cos - h[0] * sin)


def external(cos: mx.array, sin: mx.array, x: mx.array, y: mx.array) -> Pair:
    """A given field h = x + i y, the same whatever the phases do.

    Truth: the flow is a Moebius map of the circle (Watanabe & Strogatz 1993), `mobius.hold_leaf`.
    """
    return x, y


def mean_field(cos: mx.array, sin: mx.array, K: mx.array | float) -> Pair:
    """All-to-all coupling K R sin(psi - theta), h = K Z / 2.

    Truth: Lorentzian frequencies of width gamma give R = sqrt(1 - 2 gamma / K).
    Source: Kuramoto 1975.
    """
    x, y = mean_vector(cos, sin)
    return K / 2 * x, K / 2 * y


def sakaguchi(cos: mx.array, sin: mx.array, K: mx.array, alpha: mx.array) -> Pair:
    """Mean field with a phase lag, K R sin(psi - theta - alpha), h = K Z exp(-i alpha) / 2.

    Truth: R^2 = 1 - 2 gamma / (K cos alpha), and the population slows by (K/2) sin(alpha) (1 + R^2).
    Source: Sakaguchi & Kuramoto 1986.
    """
    return turn(mean_field(cos, sin, K), -alpha)


def triadic(cos: mx.array, sin: mx.array, K1: mx.array, K2: mx.array) -> Pair:
    """Pairwise and triadic coupling (K1 R + K2 R^3) sin(psi - theta), h = (K1 + K2 R^2) Z / 2.

    Truth: for large K2 coherence and incoherence coexist, and the change between them is a jump.
    Source: Skardal & Arenas 2020.
    """
    x, y = mean_vector(cos, sin)
    strength = (K1 + K2 * (x * x + y * y)) / 2
    return strength * x, strength * y


@dataclass(frozen=True)
class Phases:
    """theta' = omega + 2 Im(h exp(-i theta)), h = field(cos theta, sin theta, *parameters).

    Shapes: theta [..., N], omega broadcasts against it -> theta' [..., N].
    """

    field: Field

    def field_at(self, theta: mx.array, *parameters: mx.array) -> Pair:
        return self.field(*unit_vector(theta), *parameters)

    def __call__(self, theta: mx.array, omega: mx.array, *parameters: mx.array) -> mx.array:
        cos, sin = unit_vector(theta)
        return velocity(cos, sin, omega, self.field(cos, sin, *parameters))


@dataclass(frozen=True)
class Inertial:
    """Oscillators with mass, m theta'' + theta' = omega + 2 Im(h exp(-i theta)), as a first-order system.

    Shapes: state [2, ..., N] holds theta and theta'; omega, m broadcast against [..., N].
    Truth: with omega = 0 the energy sum m theta'^2 / 2 - K N R^2 / 2 falls at the rate sum theta'^2.
    Source: Tanaka, Lichtenberg & Oishi 1997.
    """

    field: Field

    def __call__(self, state: mx.array, omega: mx.array, m: mx.array, *parameters: mx.array) -> mx.array:
        theta, speed = state[0], state[1]
        force = Phases(self.field)(theta, omega, *parameters)
        return mx.stack([speed, (force - speed) / m])


def sphere(x: mx.array, rotation: mx.array, K: mx.array) -> mx.array:
    """Kuramoto on the unit sphere of R^D: x_i' = K (rho - (x_i . rho) x_i) + W_i x_i, rho = mean x.

    D = 2 is `Phases(mean_field)` with W = [[0, -omega], [omega, 0]].

    Shapes: x [..., N, D], rotation W [..., N, D, D] antisymmetric, K broadcasts against [..., N, D].
    Truth: for odd D, R jumps from 0 to a finite value (1/2 for D = 3) as soon as K > 0.
    Source: Chandra, Girvan & Ott 2019.
    """
    rho = mx.mean(x, axis=-2, keepdims=True)
    along = mx.sum(x * rho, axis=-1, keepdims=True)
    return K * (rho - along * x) + mx.sum(rotation * x[..., None, :], axis=-1)


def axial_rotation(w: mx.array) -> mx.array:
    """The antisymmetric W with W x = w cross x. Shapes: [..., 3] -> [..., 3, 3]."""
    zero = mx.zeros_like(w[..., 0])
    a, b, c = w[..., 0], w[..., 1], w[..., 2]
    rows = [mx.stack(row, axis=-1) for row in ([zero, -c, b], [c, zero, -a], [-b, a, zero])]
    return mx.stack(rows, axis=-2)
