"""The Kuramoto recurrence on the sphere with wells: directions that a population settles in between tokens.

    y_t = the kick of `ball_scan`;   a_t = y + β (Σ_m s_m c_m - y),   s = softmax_m(σ c_m . y)

The c_m are points of the ball. The step is one of gradient descent on

    E(a) = |a|² / 2 - (1/σ) log Σ_m exp(σ c_m . a),

which never rises for β <= 2, since E curves by 1 at most: a crystal field of M directions, in physics an
anisotropic (clock) model, elsewhere a modern Hopfield network. A map of the ball that contracts has one
attractor and forgets; M wells remember which of them the population is in, and correct what one token has
missed it by.

Such steps do not compose: time is serial in every form, and a kernel is the fast one.

Source: Ramsauer et al. 2020, arXiv 2008.02217 for the energy; José et al. 1977 for clock models.
"""

from __future__ import annotations

from functools import cache, partial

import mlx.core as mx

from kssm_mlx.ops import custom_function, dispatch
from kssm_mlx.ops.ball_scan import at_least_fp32, components, step_ball
from kssm_mlx.ops.maps.ball import kick_adjoint, slope
from kssm_mlx.ops.maps.scan import after_first
from kssm_mlx.ops.maps.vectors import conjugate, rotate
from kssm_mlx.ops.mobius_scan import refuse_negative_curvature


def ball_wells_reference(rotors, kicks, pull, points, sharpness, a0=None, kappa=1.0) -> mx.array:
    """The recurrence as on paper, differentiable by MLX itself. Shapes as in `ball_wells`."""
    B, T, _, G = kicks.shape
    a = mx.zeros((B, 3, G), kicks.dtype) if a0 is None else a0
    states = []
    for t in range(T):
        a = settle(step_ball(rotors[:, t], kicks[:, t], a, kappa), pull[:, t], points, sharpness)
        states.append(a)
    return mx.stack(states, 1)


def settle(y: mx.array, pull: mx.array, points: mx.array, sharpness: mx.array) -> mx.array:
    """One step towards the wells. Shapes: y [..., 3, G]; pull [..., G]; points [M, 3, G]; sharpness [G]."""
    mean = (shares(y, points, sharpness)[..., None, :] * points).sum(-3)
    return y + pull[..., None, :] * (mean - y)


def shares(y: mx.array, points: mx.array, sharpness: mx.array) -> mx.array:
    """How much each well draws at y, in sum 1. Shapes: y [..., 3, G] -> [..., M, G]."""
    return mx.softmax(sharpness * (points * y[..., None, :, :]).sum(-2), axis=-2)


@dispatch.with_fallback
def ball_wells(
    rotors: mx.array,
    kicks: mx.array,
    pull: mx.array,
    points: mx.array,
    sharpness: mx.array,
    a0: mx.array | None = None,
    kappa: float | mx.array = 1.0,
    *,
    impl: str = "auto",
) -> mx.array:
    """All states, with closed-form gradients. Padding: rotor (1, 0, 0, 0), kick and pull 0.

    Shapes: rotors, kicks, a0, kappa as in `ball_scan`; pull [B, T, G] in [0, 1]; points [M, 3, G] in the
        ball; sharpness [G], positive. Returns a [B, T, 3, G], fp32; the carried state is a[:, -1].
    Raises: ConfigError for a negative kappa given as a number, or an `impl` that cannot run here.
    """
    refuse_negative_curvature(kappa)
    M = points.shape[0]
    if kernel := dispatch.kernel("ball_wells", impl, kicks, wells=M):
        return kernel(rotors, kicks, pull, points, sharpness, a0, kappa, wells=M)
    B, _, _, G = kicks.shape
    rotors, kicks, pull, points, sharpness = map(at_least_fp32, (rotors, kicks, pull, points, sharpness))
    a0 = mx.zeros((B, 3, G), kicks.dtype) if a0 is None else a0.astype(kicks.dtype)
    return _scan(a0, rotors, kicks, pull, points, sharpness, mx.array(kappa, kicks.dtype))


@cache
def _compile_function(function):
    return mx.compile(function)


def _step(a, rotors, kicks, pull, points, sharpness, kappa):
    return settle(step_ball(rotors, kicks, a, kappa), pull, points, sharpness)


@custom_function
def _scan(a0, rotors, kicks, pull, *shared):
    a, states = a0, []
    for t in range(kicks.shape[1]):
        a = _compile_function(_step)(a, rotors[:, t], kicks[:, t], pull[:, t], *shared)
        states.append(a)
    return mx.stack(states, 1)


@_scan.vjp
def _(primals, cotangent, a):
    a0, rotors, kicks, pull, points, sharpness, kappa = primals
    given = (after_first(a0, a), rotors, kicks, pull, points, sharpness, kappa)
    # For all tokens at once: only what carries the cotangent from token to token is serial.
    y, turn, share, mean = _compile_function(_keep_for_adjoint)(*given)
    carried, pulled = mx.zeros_like(a0), []
    back = _compile_function(_back)
    for t in reversed(range(kicks.shape[1])):
        pulled.append(cotangent[:, t] + carried)
        carried = back(pulled[-1], turn[:, t], share[:, t], mean[:, t], pull[:, t], points, sharpness)
    return (carried, *_compile_function(_gather_gradients)(mx.stack(pulled[::-1], 1), y, share, mean, *given))


def _keep_for_adjoint(before, rotors, kicks, pull, points, sharpness, kappa):
    """What the adjoint needs of all tokens: y, how the kick turns cotangents, the shares and their mean."""
    y = step_ball(rotors, kicks, before, kappa)
    share = shares(y, points, sharpness)
    turn = slope((*components(rotors), *components(kicks), kappa), components(before))
    return y, mx.stack(list(turn), -2), share, (share[..., None, :] * points).sum(-3)


def _back(g, turn, share, mean, pull, points, sharpness):
    """The cotangent of the state before a token. Shapes: g [B, 3, G]."""
    g = _before_wells(g, share, mean, pull, points, sharpness)
    return mx.stack(list(rotate(conjugate(components(turn)), components(g))), -2)


def _before_wells(g, share, mean, pull, points, sharpness):
    """(1 - β) g + β σ (Σ s c c.g - mean mean.g): the wells' Jacobian is symmetric."""
    along = (points * g[..., None, :, :]).sum(-2)
    drawn = ((share * along)[..., None, :] * points).sum(-3) - (mean * g).sum(-2, keepdims=True) * mean
    pull = pull[..., None, :]
    return (1 - pull) * g + pull * sharpness * drawn


def _gather_gradients(g, y, share, mean, before, rotors, kicks, pull, points, sharpness, kappa):
    """The gradients of everything but the state, from the cotangents g [B, T, 3, G] of all states."""
    along = (points * g[..., None, :, :]).sum(-2)
    weight = share * (along - (mean * g).sum(-2)[..., None, :])
    drive = pull[..., None, :]
    scores = (points * y[..., None, :, :]).sum(-2)
    shared = partial(mx.sum, axis=(0, 1))
    g_points = shared((drive * share)[..., None, :] * g[..., None, :, :])
    g_points += shared((drive * sharpness * weight)[..., None, :] * y[..., None, :, :])
    g_sharpness = shared((drive * weight * scores).sum(-2))
    g_pull = (g * (mean - y)).sum(-2)
    g_y = _before_wells(g, share, mean, pull, points, sharpness)
    p = (*components(rotors), *components(kicks), kappa)
    rotor, kick, g_kappa = kick_adjoint(p, components(before), components(y), components(g_y))
    found = (mx.stack(list(rotor), -2), mx.stack(list(kick), -2), g_pull)
    return *found, g_points, g_sharpness, g_kappa.sum()
