"""The Kuramoto recurrence on spheres with an expanded state: N populations of unit vectors a channel.

    h = B_t x_t,   k = h / sqrt(1 + kappa |h|^2)
    w_t = a_{t-1}, shrunk by exp(-gamma Delta_t) and turned by the vector Delta_t (omega + spin_t)
    a_t = the Möbius translation of w_t by k,   y_t = sum over the N of C_t.a_t

`expanded_scan` in one dimension more: a population is a point of the unit ball, and what it is turned by has
an axis. A token brings its own angular velocity, shared by all channels as B and C are, and a channel's time
step scales it as it scales the rest, so that a channel that does not listen to a token is not turned by it.
Rotations about different axes do not commute, so that a population can follow a group that is not abelian.
With planar fields and everything turned about the third axis this is `expanded_scan`.

A document begins at `start`, not at the centre, which no rotation moves.
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import dispatch
from kssm_mlx.ops.ball_scan import mask_moves, rotor, states_of_balls, turn_ball
from kssm_mlx.ops.expanded_scan import in_pieces
from kssm_mlx.ops.mobius_scan import refuse_negative_curvature
from kssm_mlx.ops.scan import float32, mask_resets, mask_tokens


def expanded_ball_reference(
    x, dt, B, C, spin, gamma, omega, kappa, start=None, state=None, *, resets=None, lengths=None
) -> tuple[mx.array, mx.array, mx.array]:
    """The recurrence as on paper, one token after the other. Shapes as in `expanded_ball`."""
    x, dt, B, C, spin = float32(x, dt, B, C, spin)
    start = mx.zeros(omega.shape) if start is None else start
    a = _begin(start, x.shape[0]) if state is None else state
    y, power = [], []
    for t in range(x.shape[1]):
        before = a if resets is None else mx.where(resets[:, t, None, None, None], start, a)
        h = x[:, t, None, :, None] * B[:, t, :, None]
        k = h * mx.rsqrt(1 + kappa * (h * h).sum(1, keepdims=True))
        step = dt[:, t, :, None]
        turns = step[:, None] * (omega + spin[:, t, :, None])
        rotors = rotor((gamma * step).flatten(1), turns.flatten(2), impl="compiled")
        w = mx.unflatten(turn_ball(rotors, before.flatten(2)), -1, before.shape[2:])
        kw, kk, ww = ((u * v).sum(1, keepdims=True) * kappa for u, v in ((k, w), (k, k), (w, w)))
        new = ((1 + 2 * kw + ww) * k + (1 - kk) * w) / (1 + 2 * kw + kk * ww)
        y.append((C[:, t, :, None] * new).sum((1, 3)))
        power.append((new * new).sum((1, 3)))
        a = new if lengths is None else mx.where((t < lengths)[:, None, None, None], new, a)
    return mx.stack(y, axis=1), mx.stack(power, axis=1), a


@dispatch.with_fallback
def expanded_ball(
    x: mx.array,
    dt: mx.array,
    B: mx.array,
    C: mx.array,
    spin: mx.array,
    gamma: mx.array,
    omega: mx.array,
    kappa: mx.array | float,
    start: mx.array | None = None,
    state: mx.array | None = None,
    *,
    resets: mx.array | None = None,
    lengths: mx.array | None = None,
    impl: str = "auto",
) -> tuple[mx.array, mx.array, mx.array]:
    """Outputs and the last state, with gradients in every argument; no array has all states of all tokens.

    Shapes: x, dt [B, T, D], dt >= 0; B, C, spin [B, T, 3, N]; gamma > 0 [D, N], of unit time; omega
        [3, D, N], in radians, |dt (omega + spin)| < 1e4; kappa >= 0, a number or [D, N]; start [3, D, N],
        where documents begin, zeros when None; state [B, 3, D, N], start when None; both in the ball of
        radius kappa^(-1/2); resets [B, T] bool; lengths [B] int. gamma dt counts as 1e-6 at least.
        Returns y [B, T, D], the sum over the N of |a|^2 [B, T, D] and the state, all fp32.
    Raises: ConfigError for a negative kappa given as a number, or an `impl` that cannot run here.
    """
    refuse_negative_curvature(kappa)
    kappa = mx.broadcast_to(mx.array(kappa, mx.float32), gamma.shape)
    start = mx.zeros(omega.shape) if start is None else start
    if kernel := dispatch.kernel("expanded_ball", impl, x):
        return kernel(x, dt, B, C, spin, gamma, omega, kappa, start, state, resets=resets, lengths=lengths)
    tokens, rates = (tuple(float32(*v)) for v in ((x, dt, B, C, spin), (gamma, omega, kappa, start)))
    a = _begin(rates[3], x.shape[0]) if state is None else state.astype(mx.float32)
    if resets is not None:
        resets = mask_resets(resets, lengths)
    valid = None if lengths is None else mask_tokens(lengths, x.shape[1])
    y, power, (a,) = in_pieces(_piece, (a,), (resets, valid), tokens, rates)
    return y, power, a


def expanded_rotors_and_kicks(
    x: mx.array,
    dt: mx.array,
    B: mx.array,
    spin: mx.array,
    gamma: mx.array,
    omega: mx.array,
    kappa: mx.array,
    start: mx.array,
    resets: mx.array | None = None,
    valid: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """What every token does to every population, for `ball_scan`.

    Shapes: as in `expanded_ball`, kappa [D, N]; resets, valid [B, T] bool. Returns rotors [B, T, 4, D N] and
        kicks [B, T, 3, D N].
    """
    h = (x[:, :, None, :, None] * B[:, :, :, None]).flatten(3)
    curvature = kappa.flatten()
    kicks = h * mx.rsqrt(1 + curvature * (h * h).sum(2, keepdims=True))
    turns = dt[:, :, None, :, None] * (omega + spin[:, :, :, None])
    rotors = rotor((gamma * dt[..., None]).flatten(2), turns.flatten(3), impl="compiled")
    return mask_moves(rotors, kicks, start.flatten(1), curvature, resets, valid)


def _piece(resets, valid, a, x, dt, B, C, spin, gamma, omega, kappa, start) -> tuple[mx.array, ...]:
    """y, the power and the last states of a few tokens, every state in memory. Shapes: a [B, 3, D, N]."""
    moves = expanded_rotors_and_kicks(x, dt, B, spin, gamma, omega, kappa, start, resets, valid)
    a = mx.unflatten(states_of_balls(*moves, a.flatten(2), kappa.flatten()), -1, gamma.shape)
    return (C[:, :, :, None] * a).sum((2, 4)), (a * a).sum((2, 4)), a[:, -1]


def _begin(start: mx.array, rows: int) -> mx.array:
    return mx.broadcast_to(start, (rows, *start.shape))
