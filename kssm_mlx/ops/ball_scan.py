"""The Kuramoto recurrence on the sphere over a sequence: populations of unit vectors in three dimensions.

    w_t = p_t a_{t-1} conj(p_t)                                      turn and shrink
    a_t = ((1 + 2 κ k.w + κ |w|²) k + (1 - κ |k|²) w) / (1 + 2 κ k.w + κ² |k|² |w|²)           kick

a is a point of the unit ball; a quaternion p = sqrt(r) (cos θ/2, sin θ/2 n) turns it by θ about n and shrinks
it by r, and the kick is the Möbius translation of the ball that takes the centre to k. With planar kicks and
rotations about the third axis this is `mobius_scan`. Rotations about different axes do not commute, so one
lane can follow a non-abelian group, which no lane of a disc can. kappa = 0 is the linear control,
a_t = p a conj(p) + k, whose rotations do not commute either.

Maps of the ball compose (maps/ball.py), and they are conformal: the adjoint of the state turns and shrinks,
which is the same scan with kappa = 0, run backwards.

Source: Lipton, Mirollo & Strogatz 2019, arXiv 1907.07150 for the maps; physics in oscillators/ball.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx

from kssm_mlx.ops import custom_function, dispatch
from kssm_mlx.ops.elementary import exp, sincos, tanh_by_x
from kssm_mlx.ops.maps.ball import AFFINE, KICK, kick_adjoint, slope, translate
from kssm_mlx.ops.maps.scan import Arrays, Form, after_first, scan, time_major
from kssm_mlx.ops.maps.vectors import conjugate, rotate
from kssm_mlx.ops.mobius_scan import refuse_negative_curvature

# As on the disc: without any decay, fields along one line push a onto the surface in fp32, where 0/0 waits.
_LEAST_DECAY = 1e-6
_SMALL = 0.1  # of |w/2|²: below, sin(x)/x by its series, whose derivative does not cancel
_SINC = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880)


def ball_scan_reference(
    rotors: mx.array, kicks: mx.array, a0: mx.array | None = None, kappa: float | mx.array = 1.0
) -> mx.array:
    """The recurrence as on paper, one token after the other. Shapes as in `ball_scan`."""
    B, T, _, G = kicks.shape
    a = mx.zeros((B, 3, G), kicks.dtype) if a0 is None else a0
    states = []
    for t in range(T):
        k, w = kicks[:, t], turn_ball(rotors[:, t], a)
        kw, kk, ww = ((x * y).sum(1, keepdims=True) * kappa for x, y in ((k, w), (k, k), (w, w)))
        a = ((1 + 2 * kw + ww) * k + (1 - kk) * w) / (1 + 2 * kw + kk * ww)
        states.append(a)
    return mx.stack(states, 1)


@dispatch.with_fallback
def ball_scan(
    rotors: mx.array,
    kicks: mx.array,
    a0: mx.array | None = None,
    kappa: float | mx.array = 1.0,
    *,
    impl: str = "auto",
) -> mx.array:
    """All states of the kick form on the sphere, in parallel over time, with closed-form gradients.

    A rotor 0 forgets everything before its token (a reset); rotor (1, 0, 0, 0) and kick 0 do nothing.

    Shapes: rotors [B, T, 4, G], |p| < 1 (see `rotor`); kicks [B, T, 3, G], sqrt(kappa) |k| <= 1 (see `kick`);
        a0 [B, 3, G] in the ball, zeros when None; kappa a number or an array [].
        Returns a [B, T, 3, G], fp32; the carried state is a[:, -1].
    Raises: ConfigError for a negative kappa given as a number, or an `impl` that cannot run here.
    """
    refuse_negative_curvature(kappa)
    if kernel := dispatch.kernel("ball_scan", impl, kicks):
        return kernel(rotors, kicks, a0, kappa)
    return states_of_balls(rotors, kicks, a0, kappa)


def states_of_balls(
    rotors: mx.array, kicks: mx.array, a0: mx.array | None, kappa: float | mx.array
) -> mx.array:
    """`ball_scan` without its kernel, of populations that may differ in kappa, [] or [G]."""
    B, _, _, G = kicks.shape
    rotors, kicks = map(at_least_fp32, (rotors, kicks))
    a0 = mx.zeros((B, 3, G), kicks.dtype) if a0 is None else a0.astype(kicks.dtype)
    parts = (*components(a0), *components(rotors), *components(kicks))
    # A number 0 is known before tracing: the affine form saves the division. An array [] may become 0 later.
    if isinstance(kappa, (int, float)) and kappa == 0:
        return mx.stack(list(_scan_affine(*parts)), 2)
    return mx.stack(list(_scan_kick(*parts, mx.array(kappa, kicks.dtype))), 2)


@dispatch.with_fallback
def rotor(gamma_tau: mx.array, w: mx.array, *, impl: str = "auto") -> mx.array:
    """Free evolution: the quaternion that turns by |w| about w and shrinks by exp(-gamma tau).

    gamma tau counts as 1e-6 at least.

    Shapes: gamma_tau [..., G], dimensionless; w [..., 3, G], radians, |w| < 1e4 -> [..., 4, G].
    """
    rest = mx.maximum(gamma_tau, _LEAST_DECAY)
    if w.dtype != mx.float64 and (kernel := dispatch.kernel("rotor", impl)):
        return kernel(rest, w)
    half = w / 2
    s = (half * half).sum(-2)
    small = s < _SMALL
    x = mx.sqrt(mx.where(small, 1.0, s))
    sine, cosine = sincos(x)
    near = mx.where(small, s, 0.0)
    ratio = mx.where(small, _polynomial(near, _SINC), sine / x)
    # cos x = 1 - 2 sin² (x / 2), by the same series where x is small.
    cosine = mx.where(small, 1 - near / 2 * _polynomial(near / 4, _SINC) ** 2, cosine)
    turn = mx.concatenate([cosine[..., None, :], ratio[..., None, :] * half], axis=-2)
    return exp(-rest / 2)[..., None, :] * turn


def _polynomial(x: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    y: Any = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        y = y * x + c
    return y


def kick(h: mx.array, kappa: float | mx.array = 1.0) -> mx.array:
    """The impulse k = h tanh(x) / x, x = sqrt(kappa) |h|: smooth in h and kappa through zero, in the ball.

    Shapes: h [..., 3, G] -> [..., 3, G].
    Source: the flow of a population from the centre in a field of 2 h over unit time.
    """
    refuse_negative_curvature(kappa)
    if isinstance(kappa, (int, float)) and kappa == 0:
        return h
    return h * tanh_by_x((h * h).sum(-2, keepdims=True) * kappa)


def turn_ball(rotors: mx.array, a: mx.array) -> mx.array:
    """a turned and shrunk. Shapes: rotors [..., 4, G]; a [..., 3, G] -> [..., 3, G]."""
    return mx.stack(list(rotate(components(rotors), components(a))), -2)


def step_ball(rotors: mx.array, kicks: mx.array, a: mx.array, kappa: float | mx.array) -> mx.array:
    """One step. Shapes: rotors [..., 4, G]; kicks, a [..., 3, G] -> [..., 3, G]."""
    w = rotate(components(rotors), components(a))
    return mx.stack(list(translate(components(kicks), w, kappa)), -2)


def mask_moves(
    rotors: mx.array,
    kicks: mx.array,
    start: mx.array,
    kappa: float | mx.array,
    resets: mx.array | None,
    valid: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """The rotors and kicks where documents begin at `start` and padding does nothing.

    Shapes: rotors [B, T, 4, G]; kicks [B, T, 3, G]; start [3, G]; kappa [] or [G]; resets, valid [B, T] bool.
    """
    if resets is not None:  # a rotor 0 forgets; what is left is where the start is moved to
        begins = resets[..., None, None]
        kicks = mx.where(begins, step_ball(rotors, kicks, start, kappa), kicks)
        rotors = mx.where(begins, 0.0, rotors)
    if valid is not None:
        still, v = mx.array([1.0, 0, 0, 0])[:, None], valid[..., None, None]
        rotors, kicks = mx.where(v, rotors, still), mx.where(v, kicks, 0.0)
    return rotors, kicks


def components(x: mx.array) -> Any:
    """The vectors or quaternions [..., C, G] as C arrays [..., G]."""
    return tuple(x[..., i, :] for i in range(x.shape[-2]))


def at_least_fp32(x: mx.array) -> mx.array:
    return x if x.dtype == mx.float64 else x.astype(mx.float32)


# ---------------------------------------------------------------------------------------------------------
# Differentiation. Arguments are components [B, T, G]: a0 (3), rotor (4), kick (3), then kappa, [] or [G], of
# a kick.


def _states(form: Form, a0: Arrays, p: Arrays) -> Arrays:
    moving, constant = form.split(p)
    return tuple(x.swapaxes(0, 1) for x in scan(form, (*map(time_major, moving), *constant), a0))


@custom_function
def _scan_kick(*parts):
    return _states(KICK, parts[:3], parts[3:])


@_scan_kick.vjp
def _(primals, cotangents, outputs):
    a0, p = primals[:3], primals[3:]
    before = tuple(map(after_first, a0, outputs))
    slopes = _compile_function(slope)(list(p), list(before))
    # The adjoint of a Möbius step is affine in the cotangent, and so a scan again, backwards.
    g = reverse_affine(slopes, cotangents)
    rotors, kicks, kappa = _compile_function(kick_adjoint)(list(p), list(before), list(outputs), list(g))
    return *_at_start(slopes, g), *rotors, *kicks, kappa.sum() if p[-1].ndim == 0 else kappa.sum((0, 1))


@custom_function
def _scan_affine(*parts):
    return _states(AFFINE, parts[:3], parts[3:])


@_scan_affine.vjp
def _(primals, cotangents, outputs):
    a0, p = primals[:3], primals[3:]
    g = reverse_affine(p[:4], cotangents)
    before = list(map(after_first, a0, outputs))
    # At kappa = 0 a kick is an addition, whose gradient is g itself.
    none = [*p, mx.array(0, p[0].dtype)]
    rotors, *_ = _compile_function(kick_adjoint)(none, before, list(outputs), list(g))
    return *_at_start(p[:4], g), *rotors, *g


@cache
def _compile_function(function: Callable) -> Callable:
    return mx.compile(lambda *parts: function(*map(tuple, parts)))


def reverse_affine(slopes: Any, cotangent: Arrays) -> Arrays:
    """g_t = cotangent_t + conj(P) g_{t+1} P of token t + 1, from the last to the first. Shapes: [B, T, G]."""
    shifted = (mx.concatenate([x[:, 1:], mx.zeros_like(x[:, :1])], axis=1) for x in conjugate(slopes))
    p = tuple(time_major(x[:, ::-1]) for x in (*shifted, *cotangent))
    zero = mx.zeros_like(cotangent[0][:, 0])
    return tuple(x.swapaxes(0, 1)[:, ::-1] for x in scan(AFFINE, p, (zero, zero, zero)))


def _at_start(slopes: Any, g: Arrays) -> Arrays:
    """The gradient in a0."""
    return rotate(conjugate(tuple(x[:, 0] for x in slopes)), tuple(x[:, 0] for x in g))
