"""The Kuramoto recurrence over a sequence, computed in parallel over time.

    z_t = (a_t z_{t-1} + k_t) / (1 + kappa conj(k_t) a_t z_{t-1})                    (kick form)

Every step is a map of the unit disc, M(z) = q + d z / (1 + r z), and maps compose (maps/scan.py).

A disc map is holomorphic, so the adjoint of the state is one
linear complex recurrence, g_{t-1} = conj(M_t'(z_{t-1})) g_t + cotangent_{t-1}: the same scan with kappa = 0,
run backwards. Parameter gradients follow from it elementwise.

Complex numbers are `Planar` pairs of real arrays; the state is fp32 whatever the inputs are.

Source: oscillators/mobius.py for the maps; kappa = 1 is Kuramoto, kappa = 0 a complex linear SSM.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops import custom_function, dispatch
from kssm_mlx.ops.elementary import exp, sincos, tanh_by_x
from kssm_mlx.ops.maps.disc import AFFINE, DISC, KICK, DiscForm
from kssm_mlx.ops.maps.scan import Arrays, after_first, scan, time_major
from kssm_mlx.oscillators.mobius import Disc, derivative
from kssm_mlx.oscillators.planar import Planar

# Without any decay, fields along one line push z onto the circle in fp32, where 0/0 waits.
_LEAST_DECAY = 1e-6


def mobius_scan_reference(
    a: Planar, k: Planar, z0: Planar | None = None, kappa: float | mx.array = 1.0
) -> Planar:
    """The recurrence as on paper, one token after the other; differentiable by MLX itself.

    Shapes: a, k [B, T, G]; z0 [B, G], zeros when None. Returns z [B, T, G].
    """
    B, T, G = k.shape
    z = Planar.zeros((B, G), k.dtype) if z0 is None else z0
    states = []
    for t in range(T):
        at, kt = (Planar(x.re[:, t], x.im[:, t]) for x in (a, k))
        w = at * z
        z = (w + kt) / (1 + kt.conj * w * kappa)
        states.append(z)
    return Planar(mx.stack([s.re for s in states], 1), mx.stack([s.im for s in states], 1))


@dispatch.with_fallback
def mobius_scan(
    a: Planar, k: Planar, z0: Planar | None = None, kappa: float | mx.array = 1.0, *, impl: str = "auto"
) -> Planar:
    """All states of the kick form, in parallel over time, with closed-form gradients in a, k, z0 and kappa.

    Shapes: a, k [B, T, G], |a| < 1 (see `flow`), sqrt(kappa) |k| <= 1 (see `kick`); z0 [B, G] in the disc,
        zeros when None; kappa a number or an array []. Returns z [B, T, G]; the carried state is z[:, -1].
    Raises: ConfigError for a negative kappa given as a number, or an `impl` that cannot run here.
    """
    refuse_negative_curvature(kappa)
    if kernel := dispatch.kernel("mobius_scan", impl, k.re):
        return kernel(a, k, z0, kappa)
    a, k = a.map(_at_least_fp32), k.map(_at_least_fp32)
    B, _, G = k.shape
    z0 = Planar.zeros((B, G), k.dtype) if z0 is None else z0.map(lambda x: x.astype(k.dtype))
    # A number 0 is known before tracing: the affine form saves the division. An array [] may become 0 later.
    if isinstance(kappa, (int, float)) and kappa == 0:
        return Planar(*_differentiable(AFFINE)(z0.re, z0.im, a.re, a.im, k.re, k.im))
    return Planar(*_differentiable(KICK)(z0.re, z0.im, a.re, a.im, k.re, k.im, mx.array(kappa, k.dtype)))


def disc_scan(maps: Disc, z0: Planar | None = None) -> Planar:
    """All states z_t = M_t(z_{t-1}) of arbitrary disc maps, such as the exact `hold_leaf`; same method.

    Shapes: the fields of `maps` are Planar [B, T, G]; z0 [B, G]. Returns z [B, T, G].
    """
    q, r, d = (x.map(_at_least_fp32) for x in maps)
    B, _, G = q.shape
    z0 = Planar.zeros((B, G), q.dtype) if z0 is None else z0.map(lambda x: x.astype(q.dtype))
    return Planar(*_differentiable(DISC)(z0.re, z0.im, q.re, q.im, r.re, r.im, d.re, d.im))


def flow(gamma_tau: mx.array, omega_tau: mx.array) -> Planar:
    """Free evolution a = exp(-gamma tau + i omega tau) of a population; gamma tau counts as 1e-6 at least.

    Shapes: both [...], dimensionless; omega tau in radians.
    """
    sine, cosine = sincos(omega_tau)
    radius = exp(-mx.maximum(gamma_tau, _LEAST_DECAY))
    return Planar(radius * cosine, radius * sine)


def kick(h: Planar, kappa: float | mx.array = 1.0) -> Planar:
    """The impulse k = h tanh(x) / x, x = sqrt(kappa) |h|: smooth in h and kappa through zero, in the disc.

    Source: the flow of z' = h - kappa conj(h) z^2 from z = 0 over unit time.
    """
    refuse_negative_curvature(kappa)
    if isinstance(kappa, (int, float)) and kappa == 0:
        return h
    return h * tanh_by_x(h.abs2 * kappa)


def refuse_negative_curvature(kappa: float | mx.array) -> None:
    """Raise ConfigError for kappa < 0, whose maps leave the disc, and for NaN."""
    if isinstance(kappa, (int, float)) and not kappa >= 0:
        raise ConfigError(
            f"kappa must be >= 0 (1 Kuramoto, 0 linear), got {kappa}: negative curvature moves z on a "
            "sphere, which needs homogeneous coordinates and is not available"
        )


@cache
def _differentiable(kind: DiscForm) -> Callable[..., Arrays]:
    """(z0_re, z0_im, *parameters [B, T, G]) -> (z_re, z_im), with the adjoint as its vjp."""

    @custom_function
    def states(z0_re, z0_im, *p):
        moving, constant = kind.form.split(p)
        z = scan(kind.form, (*map(time_major, moving), *constant), (z0_re, z0_im))
        return tuple(x.swapaxes(0, 1) for x in z)

    @states.vjp
    def _(primals, cotangents, outputs):
        z0, p, z = Planar(*primals[:2]), primals[2:], Planar(*outputs)
        z_prev = Planar(after_first(z0.re, z.re), after_first(z0.im, z.im))
        slope = derivative(kind.disc(p), z_prev).conj
        g = _reverse_affine(slope, Planar(*cotangents))
        moving, shared = kind.form.split(kind.adjoint(p, z_prev, z, g))
        g0 = (slope * g).map(lambda x: x[:, 0])
        return (g0.re, g0.im, *moving, *(x.sum() for x in shared))

    return states


def _reverse_affine(slope: Planar, cotangent: Planar) -> Planar:
    """g_t = cotangent_t + slope_{t+1} g_{t+1}, from the last token to the first. Shapes: [B, T, G]."""
    shifted = slope.map(lambda x: mx.concatenate([x[:, 1:], mx.zeros_like(x[:, :1])], axis=1))
    p = (shifted.re, shifted.im, cotangent.re, cotangent.im)
    z0 = Planar.zeros((cotangent.shape[0], cotangent.shape[2]), cotangent.dtype)
    g = scan(AFFINE.form, tuple(time_major(x[:, ::-1]) for x in p), (z0.re, z0.im))
    return Planar(*(x.swapaxes(0, 1)[:, ::-1] for x in g))


def _at_least_fp32(x: mx.array) -> mx.array:
    return x if x.dtype == mx.float64 else x.astype(mx.float32)
