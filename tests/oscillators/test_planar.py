"""Two real arrays are a complex number: every operation against numpy in complex128."""

import operator

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.oscillators.planar import Planar


def numbers(seed: int) -> np.ndarray:
    re, im = np.random.default_rng(seed).normal(size=(2, 4, 3))
    return re + 1j * im


def planar(z: np.ndarray) -> Planar:
    return Planar(mx.array(z.real.astype(np.float32)), mx.array(z.imag.astype(np.float32)))


def assert_is(got: Planar, expected: np.ndarray):
    np.testing.assert_allclose(np.array(got.re) + 1j * np.array(got.im), expected, rtol=1e-5, atol=1e-6)


A, B = numbers(0), numbers(1)
OPERATIONS = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("other", [B, B[:1], 2.5], ids=["array", "broadcast", "number"])
def test_operations(operation, other):
    right = planar(other) if isinstance(other, np.ndarray) else other
    assert_is(operation(planar(A), right), operation(A, other))


@pytest.mark.parametrize("operation", [operator.add, operator.mul, operator.truediv])
def test_a_real_number_on_the_left(operation):
    assert_is(operation(2.5, planar(A)), operation(2.5, A))


def test_a_real_array_scales():
    real = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    assert_is(planar(A) * mx.array(real), A * real)
    assert_is(planar(A) / mx.array(real), A / real)
    assert_is(planar(A) + mx.array(real), A + real)


def test_negation_conjugate_square_and_powers():
    assert_is(-planar(A), -A)
    assert_is(planar(A).conj, A.conj())
    np.testing.assert_allclose(planar(A).abs2, np.abs(A) ** 2, rtol=1e-6)
    for n in (1, 2, 3, 5):
        assert_is(planar(A) ** n, A**n)


def test_to_and_from_complex_and_polar():
    assert_is(Planar.of(mx.array(A.astype(np.complex64))), A)
    np.testing.assert_allclose(planar(A).complex, A, rtol=1e-6)
    assert_is(Planar.polar(mx.array(np.abs(A)), mx.array(np.angle(A))), A)


def test_shape_dtype_zeros_and_map():
    zero = Planar.zeros((2, 3), mx.bfloat16)
    assert zero.shape == (2, 3) and zero.dtype == mx.bfloat16 and zero.abs2.sum().item() == 0
    assert_is(planar(A).map(lambda x: x[1:]), A[1:])
