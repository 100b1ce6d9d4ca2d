"""Complex numbers as two real arrays, so that formulas read as on paper and run in bf16, fp32 and fp64.

MLX has no complex bfloat16 and no complex128, and a compiled complex64 step costs 2-3 times a real one on the
CPU. `Planar` carries (re, im) through + - * / unchanged in form; the disc maps of mobius.py accept it.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Planar:
    """z = re + i im. Shapes: re and im are equal; binary operations broadcast; scalars are real."""

    re: mx.array
    im: mx.array

    @classmethod
    def of(cls, z: mx.array) -> Planar:
        """From a complex64 array."""
        return cls(mx.real(z), mx.imag(z))

    @classmethod
    def polar(cls, radius: mx.array, angle: mx.array) -> Planar:
        """radius * exp(i angle), angle in radians."""
        return cls(radius * mx.cos(angle), radius * mx.sin(angle))

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> Planar:
        return cls(mx.zeros(shape, dtype), mx.zeros(shape, dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.re.shape

    @property
    def dtype(self) -> mx.Dtype:
        return self.re.dtype

    @property
    def conj(self) -> Planar:
        return Planar(self.re, -self.im)

    @property
    def abs2(self) -> mx.array:
        """|z|^2, real."""
        return self.re * self.re + self.im * self.im

    @property
    def complex(self) -> mx.array:
        """As a complex64 array."""
        return self.re.astype(mx.float32) + 1j * self.im.astype(mx.float32)

    def map(self, f) -> Planar:
        """Apply `f` to both planes: reshape, pad, slice, cast."""
        return Planar(f(self.re), f(self.im))

    def __neg__(self) -> Planar:
        return Planar(-self.re, -self.im)

    def __add__(self, other) -> Planar:
        if isinstance(other, Planar):
            return Planar(self.re + other.re, self.im + other.im)
        return Planar(self.re + other, self.im)

    def __sub__(self, other) -> Planar:
        return self + (-other)

    def __mul__(self, other) -> Planar:
        if isinstance(other, Planar):
            return Planar(
                self.re * other.re - self.im * other.im,
                self.re * other.im + self.im * other.re,
            )
        return Planar(self.re * other, self.im * other)

    def __truediv__(self, other) -> Planar:
        if isinstance(other, Planar):
            return self * other.conj * (1 / other.abs2)
        return self * (1 / other)

    def __rtruediv__(self, other) -> Planar:
        return self.conj * (other / self.abs2)

    def __pow__(self, n: int) -> Planar:
        power = self
        for _ in range(n - 1):
            power = power * self
        return power

    __radd__ = __add__
    __rmul__ = __mul__
