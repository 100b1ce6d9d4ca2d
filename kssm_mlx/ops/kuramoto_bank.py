"""Groups of N coupled oscillators that are driven, token by token, and carry their phases.

    theta_i' = omega_i + 2 Im(f exp(-i theta_i)),    f = K Z / 2 + h,    Z = mean exp(i theta)

over a time tau per token in S Euler steps; what is read is Z_n = mean exp(i n theta), n = 1 ... H. The mean
field costs O(N), and the harmonics come from one sine and cosine by z^{n+1} = z^n z.

Unlike the Möbius maps of `mobius_scan`, which are this model for N -> infinity and Lorentzian omega, N phases
do not compose: time is serial in every form. The adjoint is written out and recomputes inside a token, so a
sequence keeps its phases once per token.

Source: Kuramoto 1975; Daido 1996 for the harmonics. Convention of the field: oscillators/kuramoto.py.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from kssm_mlx.ops import custom_function, dispatch, gpu
from kssm_mlx.ops.elementary import sincos
from kssm_mlx.ops.scan import float32
from kssm_mlx.oscillators.planar import Planar

TWO_PI = 2 * math.pi


def kuramoto_bank_reference(theta, omega, K, h, tau, *, steps=1, harmonics=1):
    """The equations as on paper, differentiable by MLX itself. Shapes as in `kuramoto_bank`."""
    read = []
    for t in range(K.shape[1]):
        K_t, tau_t, h_t = (
            K[:, t, :, None],
            tau[:, t, :, None],
            Planar(h.re[:, t, :, None], h.im[:, t, :, None]),
        )
        for _ in range(steps):
            unit = Planar.polar(mx.ones_like(theta), theta)
            f = unit.map(lambda x: x.mean(-1, keepdims=True)) * (K_t / 2) + h_t
            theta = theta + tau_t / steps * (omega + 2 * (f * unit.conj).im)
        powers = [Planar.polar(mx.ones_like(theta), n * theta) for n in range(1, harmonics + 1)]
        read.append([z.map(lambda x: x.mean(-1)) for z in powers])
    return Planar(*(_stack_part(read, part) for part in ("re", "im"))), wrap_phases(theta)


def _stack_part(read: list[list[Planar]], part: str) -> mx.array:
    return mx.stack([mx.stack([getattr(z, part) for z in token], -1) for token in read], 1)


def wrap_phases(theta: mx.array) -> mx.array:
    """The same phases within [-pi, pi], so that long sequences lose no digits."""
    return theta - TWO_PI * mx.stop_gradient(mx.round(theta / TWO_PI))


@dispatch.with_fallback
def kuramoto_bank(
    theta: mx.array,
    omega: mx.array,
    K: mx.array,
    h: Planar,
    tau: mx.array,
    *,
    steps: int = 1,
    harmonics: int = 1,
    impl: str = "auto",
) -> tuple[Planar, mx.array]:
    """Order parameters after every token, and the phases after the last.

    Shapes: theta [B, G, N]; omega [G, N]; K, tau [B, T, G]; h Planar [B, T, G].
        Returns Z [B, T, G, harmonics] and theta [B, G, N] within [-pi, pi], fp32.
    Units: theta in radians; omega, K and h per unit time; tau > 0 the time one token lasts.
    Raises: ConfigError for an `impl` that is not "auto", "compiled" or "kernel".
    """
    if kernel := dispatch.kernel("kuramoto_bank", impl, K, steps=steps, harmonics=harmonics):
        return kernel(theta, omega, K, h, tau, steps=steps, harmonics=harmonics)
    arguments = float32(theta, omega, K, h.re, h.im, tau)
    theta, re, im, _ = _bank(steps, harmonics)(*arguments)
    return Planar(re, im), theta


class _Bank(NamedTuple):
    """Phases with what every step needs of them. Shapes: theta, unit [B, G, N]; z [B, G, 1]."""

    theta: mx.array
    unit: Planar
    z: Planar

    @classmethod
    def of(cls, theta: mx.array) -> _Bank:
        sin, cos = sincos(theta)
        unit = Planar(cos, sin)
        return cls(theta, unit, unit.map(_mean))


def _mean(x: mx.array) -> mx.array:
    return x.mean(-1, keepdims=True)


@cache
def _bank(S: int, H: int):
    """(theta, omega, K, h_re, h_im, tau) -> (theta, Z_re, Z_im, phases before each token)."""
    token: Any = mx.compile(_token(S, H))
    adjoint: Any = mx.compile(_token_adjoint(S, H))

    @custom_function
    def bank(theta, omega, *drive):
        before, read = [], []
        _, unit, z = _Bank.of(theta)
        carried = (theta, unit.re, unit.im, z.re, z.im)
        for t in range(drive[0].shape[1]):
            # Phases before each token are all that is kept: the adjoint computes the rest again from them.
            before.append(carried[0])
            *carried, re, im = token(*carried, omega, *(x[:, t, :, None] for x in drive))
            read.append((re, im))
        return carried[0], *(mx.stack(list(part), 1) for part in zip(*read)), mx.stack(before, 1)

    @bank.vjp
    def _(primals, cotangents, outputs):
        theta, omega, *drive = primals
        g, c_re, c_im, _ = cotangents
        found, g_omega = [], mx.zeros_like(theta)
        for t in reversed(range(drive[0].shape[1])):
            here = (outputs[3][:, t], omega, *(x[:, t, :, None] for x in drive))
            g, g_omega, *tokens = adjoint(*here, g, g_omega, c_re[:, t, :, :, None], c_im[:, t, :, :, None])
            found.append(tokens)
        drives = [mx.stack([*part][::-1], 1) for part in zip(*found)]
        return gpu.gradients(primals, (g, g_omega.sum(0), *drives))

    return bank


def _advance(bank: _Bank, omega, K, h: Planar, step, S: int) -> tuple[_Bank, list]:
    """The bank after S Euler steps, and (bank, field, speed) of each. Shapes: K, h, step [B, G, 1]."""
    path = []
    for _ in range(S):
        # Every phase feels the same field, so that a step costs N and not N squared.
        f = bank.z * (K / 2) + h
        speed = omega + 2 * (f * bank.unit.conj).im
        path.append((bank, f, speed))
        bank = _Bank.of(bank.theta + step * speed)
    return bank, path


def _powers(one: Planar, H: int) -> list[Planar]:
    powers = [one]
    for _ in range(H - 1):
        powers.append(powers[-1] * one)
    return powers


def _token(S: int, H: int):
    def token(theta, cos, sin, z_re, z_im, omega, K, h_re, h_im, tau):
        start = _Bank(theta, Planar(cos, sin), Planar(z_re, z_im))
        (theta, unit, z), _ = _advance(start, omega, K, Planar(h_re, h_im), tau / S, S)
        read = [z, *(power.map(_mean) for power in _powers(unit, H)[1:])]
        harmonics = (mx.concatenate([getattr(x, part) for x in read], -1) for part in ("re", "im"))
        # Wrapped here, where the harmonics no longer depend on it.
        return wrap_phases(theta), unit.re, unit.im, z.re, z.im, *harmonics

    return token


def _token_adjoint(S: int, H: int):
    """Gradients in (theta, omega, K, h_re, h_im, tau) of one token, given those of what follows."""

    def adjoint(theta, omega, K, h_re, h_im, tau, g, g_omega, c_re, c_im):
        N, step = theta.shape[-1], tau / S
        end, path = _advance(_Bank.of(theta), omega, K, Planar(h_re, h_im), step, S)
        for n, power in enumerate(_powers(end.unit, H)):
            # d mean(exp(i n theta)) / d theta is i n exp(i n theta) / N.
            g = g + (n + 1) / N * (c_im[:, :, n] * power.re - c_re[:, :, n] * power.im)
        nothing: Any = 0
        g_K, g_h, g_tau = nothing, Planar(nothing, nothing), nothing
        for (_, unit, z), f, speed in reversed(path):
            push = step * g
            g_f = Planar(-2 * push * unit.im, 2 * push * unit.re).map(lambda x: x.sum(-1, keepdims=True))
            g_omega, g_tau = g_omega + push, g_tau + (g * speed).sum(-1)
            g_K, g_h = g_K + (g_f.re * z.re + g_f.im * z.im), g_h + g_f
            g = g - 2 * push * (f * unit.conj).re + (g_f * unit.conj).im * (K / 2 / N)
        return g, g_omega, g_K[..., 0] / 2, g_h.re[..., 0], g_h.im[..., 0], g_tau / S

    return adjoint
