"""Where formulas are replaced near zero or built from others in float64, they are the same formulas."""

import math

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.oscillators.integrate import impulse
from kssm_mlx.oscillators.order import unit_vector


@pytest.mark.parametrize("size", [1e-7, 1e-5, 0.99e-4, 1.01e-4, 1e-2])
def test_an_impulse_is_the_field_to_first_order_on_both_sides_of_the_series(size):
    theta, h = np.array([0.3, 2.0, -1.2]), size * np.exp(0.7j)
    with mx.stream(mx.cpu):
        field = (mx.array(h.real, mx.float64), mx.array(h.imag, mx.float64))
        moved = impulse(mx.array(theta, mx.float64), field, mx.array(1.0, mx.float64)) - mx.array(
            theta, mx.float64
        )
    slope = 2 * (h * np.exp(-1j * theta)).imag
    assert np.array(moved) == pytest.approx(slope, rel=10 * size + 1e-9)


def test_float64_unit_vectors_of_angles_beyond_a_turn():
    theta = np.linspace(-40, 40, 401)
    with mx.stream(mx.cpu):
        cos, sin = unit_vector(mx.array(theta, mx.float64))
        assert np.array(cos) == pytest.approx(np.cos(theta), abs=1e-12)
        assert np.array(sin) == pytest.approx(np.sin(theta), abs=1e-12)
        cos, sin = unit_vector(mx.array([math.pi, -math.pi, 2 * math.pi], mx.float64))
        assert np.array(cos) == pytest.approx([-1, -1, 1]) and np.array(sin) == pytest.approx(
            [0] * 3, abs=1e-12
        )
