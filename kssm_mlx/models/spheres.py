"""G Kuramoto populations on spheres as a recurrent layer: unit vectors of three dimensions, not phases.

    w_t = omega Delta_t + W_w u_t,   r_t = exp(-gamma Delta_t),   k_t = kick(h_t Delta_t)
    y_t = the Möbius translation by k_t of (r_t a_{t-1} turned by |w_t| about w_t)
    a_t = y_t, or with wells a_t = y_t + pull (Σ_m s_m c_m - y_t)

Rotations of the sphere do not commute, so one lane can follow a group that is not abelian; with wells it
corrects what a token has missed them by. `ops.ball_scan` and `ops.ball_wells` have the recurrence,
oscillators/ball.py the physics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Clamp, mask_clamped
from kssm_mlx.models.interventions.spec import Inside
from kssm_mlx.models.layers import inverse_softplus, linear
from kssm_mlx.models.populations import Moved, clamped_states, log_scale, spectrum
from kssm_mlx.ops.ball_scan import ball_scan, components, kick, mask_moves, rotor, step_ball
from kssm_mlx.ops.ball_wells import ball_wells, settle, shares
from kssm_mlx.ops.elementary import softplus
from kssm_mlx.ops.maps.scan import after_first
from kssm_mlx.oscillators.ball import sphere_order, sphere_size


class Drive(NamedTuple):
    """What a token does to the populations. Shapes: field, turn [B, T, 3, G]; dt [B, T, G]."""

    field: mx.array
    turn: mx.array
    dt: mx.array


class Spheres(nn.Module):
    """G Kuramoto populations on spheres.

    Parameters: omega [3, G], a rotation per unit time; log_gamma [G]; the field h = W_h u and the rotation
    W_w u of inputs u [D]; the time step Delta = softplus(W_dt u + b), 1 at the start; start [3, G], where a
    document begins; coupling [G] to the block below; of M wells their directions [M, 3, G], pull [G] and
    sharpness [G], before sigmoid and exp.

    turning: how many populations, the first ones, a token turns; rotation: by how much at first, its standard
    deviation in radians. size: |a| where a document begins at first, in random directions: from the
    centre a lane is turned to nowhere, and the first token alone would have to place it. pull, sharpness:
    of the wells at first, the share of the way to them, and what the cosine to each is multiplied by; reach:
    |c_m|, where a population in a well comes to rest.
    """

    def __init__(
        self,
        key: mx.array,
        D: int,
        G: int,
        *,
        memory: int,
        shortest: float,
        field: float,
        kappa: float,
        coupled: bool,
        turning: int,
        rotation: float,
        size: float,
        wells: int,
        pull: float,
        sharpness: float,
        reach: float = 0.9,
    ):
        super().__init__()
        keys = mx.random.split(key, 7)
        speed, self.log_gamma = spectrum(keys[0], G, memory, shortest)
        self.omega = speed * directions(keys[1], G)
        quiet = mx.where(mx.argsort(mx.argsort(self.log_gamma)) < G // 3, 0.3, 1.0)
        self.field = linear(keys[2], D, 3 * G, std=field * D**-0.5)
        self.field.weight = self.field.weight * mx.concatenate([quiet] * 3)[:, None]
        self.time_step = linear(keys[3], D, G, std=0.0, bias=True)
        self.time_step.bias = inverse_softplus(mx.ones((G,)))
        if turning:
            self.rotation = linear(keys[4], D, 3 * turning, std=rotation * D**-0.5)
        self.start = size * directions(keys[6], G)
        if coupled:
            self.coupling = mx.zeros((G,))
        if wells:
            self.directions = mx.stack([directions(k, G) for k in mx.random.split(keys[5], wells)])
            self.pull = mx.full((G,), math.log(pull / (1 - pull)))
            self.sharpness = mx.full((G,), math.log(sharpness))
        self._kappa, self._reach = kappa, reach

    @property
    def wells(self) -> mx.array | None:
        """Where they are. Shapes: [M, 3, G]."""
        if "directions" not in self:
            return None
        return self._reach * self.directions * mx.rsqrt(mx.square(self.directions).sum(1, keepdims=True))

    @property
    def origin(self) -> mx.array:
        """Where a document begins, which training may have put outside the ball. Shapes: [3, G]."""
        return within_ball(self.start, self._kappa)

    def run(
        self,
        u: mx.array,
        below: tuple[mx.array, ...] | None,
        state: mx.array | None,
        harmonics: int,
        clamps: tuple[Clamp, ...] = (),
        resets: mx.array | None = None,
        valid: mx.array | None = None,
        inside: Inside | None = None,
    ) -> Moved:
        """As `Populations.run`. Shapes: below one array [B, T, 3, G]; state [B, 3, G]."""
        drive = self.drive(u, None if below is None else below[0])
        if inside:
            G = drive.dt.shape[-1]
            parts = (inside.detach_routing(x.flatten(-2), G) for x in (drive.field, drive.turn))
            field, turn = (mx.unflatten(x, -1, (3, G)) for x in parts)
            drive = Drive(field, turn, inside.detach_routing(drive.dt))
        in_state = tuple(c for c in clamps if c.where == "state")
        a = free = self.evolve(drive, state, in_state, resets, valid)
        for clamp in clamps:
            a = self.clamp(a, clamp, clamp.value, 0)
        trace = {
            **self.observe(a),
            "h": mx.sqrt(mx.square(drive.field).sum(-2)),
            "dt": drive.dt,
            "angle": mx.sqrt(mx.square(drive.turn).sum(-2)),
            "lyapunov": self.lyapunov(free, state, drive, resets),
            "state": free[:, -1],
        }
        above = mx.stack([inside.silence_units(x) for x in components(a)], -2) if inside else a
        return Moved(features(a, harmonics), free[:, -1], (above,), trace)

    def advance_state(self, u: mx.array, state: mx.array) -> mx.array:
        """The states after these inputs. Shapes: u [B, T, D]; state [B, 3, G] -> [B, 3, G]."""
        return self.evolve(self.drive(u, None), state)[:, -1]

    def settle_in_wells(self, starts: mx.array, steps: int = 300) -> mx.array:
        """Where the wells alone take populations from these points. Shapes: [S, 3] -> [S, 3, G]."""
        points = self.wells
        if points is None:
            raise ConfigError("these populations have no wells to settle in; model.wells gives them some")
        a = mx.broadcast_to(starts[..., None], (*starts.shape, points.shape[-1]))
        for _ in range(steps):
            a = settle(a, mx.ones((a.shape[0], a.shape[-1])), points, mx.exp(self.sharpness) / self._reach)
            mx.eval(a)
        return a

    def drive(self, u: mx.array, below: mx.array | None) -> Drive:
        """What each token does, fp32. Shapes: u [B, T, D]; below [B, T, 3, G]."""
        field = mx.unflatten(self.field(u).astype(mx.float32), -1, (3, -1))
        if below is not None and "coupling" in self:
            field = field + self.coupling * below
        dt = softplus(self.time_step(u).astype(mx.float32))
        turn = self.omega * dt[..., None, :]
        if "rotation" in self:
            own = mx.unflatten(self.rotation(u).astype(mx.float32), -1, (3, -1))
            rest = turn.shape[-1] - own.shape[-1]
            turn = turn + (mx.pad(own, [(0, 0)] * 3 + [(0, rest)]) if rest else own)
        return Drive(field, turn, dt)

    def evolve(
        self,
        drive: Drive,
        a0: mx.array | None,
        clamps: tuple[Clamp, ...] = (),
        resets: mx.array | None = None,
        valid: mx.array | None = None,
    ) -> mx.array:
        """States after every token. Shapes: a0 [B, 3, G]; resets, valid [B, T] bool -> [B, T, 3, G]."""
        step = self._steps(drive, resets, valid)
        if not clamps:
            return step(0, drive.dt.shape[1], a0)
        return clamped_states(step, clamps, a0, drive.dt, valid, self.clamp)

    def _steps(self, drive: Drive, resets: mx.array | None, valid: mx.array | None):
        """(start, stop, a0) -> states of those tokens."""
        rotors = rotor(mx.exp(self.log_gamma) * drive.dt, drive.turn)
        kicks = kick(drive.field * drive.dt[..., None, :], self._kappa)
        pull = mx.broadcast_to(mx.sigmoid(self.pull), drive.dt.shape) if "pull" in self else None
        rotors, kicks = mask_moves(rotors, kicks, self.origin, self._kappa, resets, valid)
        if valid is not None:
            pull = None if pull is None else mx.where(valid[..., None], pull, 0.0)
        points = self.wells

        def steps(i: int, j: int, a0: mx.array | None) -> mx.array:
            a0 = self._begin(rotors.shape[0]) if a0 is None else a0
            if pull is None or points is None:
                return ball_scan(rotors[:, i:j], kicks[:, i:j], a0, self._kappa)
            sharp = mx.exp(self.sharpness) / self._reach
            return ball_wells(rotors[:, i:j], kicks[:, i:j], pull[:, i:j], points, sharp, a0, self._kappa)

        return steps

    def lyapunov(self, a, a0, drive: Drive, resets: mx.array | None = None) -> mx.array:
        """ln |det da_t / da_{t-1}| / 3 per token and population, the mean over directions.

        Shapes: a [B, T, 3, G]; a0 [B, 3, G]; resets [B, T] bool -> [B, T, G].
        Without wells every direction has it (`log_scale`).
        """
        gamma_tau = mx.exp(self.log_gamma) * drive.dt
        before = self._state_before(a, a0, resets)
        y, log_wells = a, 0.0
        if "pull" in self:
            kicks = kick(drive.field * drive.dt[..., None, :], self._kappa)
            y = step_ball(rotor(gamma_tau, drive.turn), kicks, before, self._kappa)
            log_wells = self._log_wells(y)
        was, now = (mx.square(v).sum(-2) for v in (before, y))
        return log_scale(gamma_tau, was, now, self._kappa) + log_wells

    def _log_wells(self, y: mx.array) -> mx.array:
        """ln |det| / 3 of the step towards the wells at y. Shapes: [B, T, 3, G] -> [B, T, G]."""
        points, sharp = self.wells, mx.exp(self.sharpness) / self._reach
        assert points is not None
        share = shares(y, points, sharp)[..., None, :]
        mean = (share * points).sum(-3)
        pull = mx.sigmoid(self.pull)
        # (1 - pull) I + pull sharpness (the covariance of the wells under the shares), 3 x 3.
        rows = [
            (share * points[:, i : i + 1] * points).sum(-3) - mean[..., i : i + 1, :] * mean for i in range(3)
        ]
        J = [
            [(pull * sharp) * rows[i][..., j, :] + (1 - pull) * (i == j) for j in range(3)] for i in range(3)
        ]
        det = (
            J[0][0] * (J[1][1] * J[2][2] - J[1][2] * J[2][1])
            - J[0][1] * (J[1][0] * J[2][2] - J[1][2] * J[2][0])
            + J[0][2] * (J[1][0] * J[2][1] - J[1][1] * J[2][0])
        )
        return mx.log(mx.maximum(mx.abs(det), 1e-37)) / 3

    def _begin(self, B: int) -> mx.array:
        return mx.broadcast_to(self.origin, (B, *self.start.shape))

    def _state_before(self, a, a0, resets: mx.array | None) -> mx.array:
        before = after_first(self._begin(a.shape[0]) if a0 is None else a0, a)
        return before if resets is None else mx.where(resets[..., None, None], self.origin, before)

    def observe(self, a: mx.array) -> dict[str, mx.array]:
        """R, psi and tilt (`observe_balls`); with wells which is the nearest, and how far.

        Shapes: a [B, T, 3, G] -> [B, T, G] each.
        """
        seen = observe_balls(a, self._kappa)
        if (points := self.wells) is not None:
            far = mx.square(a[..., None, :, :] - points).sum(-2)
            seen |= {"well": mx.argmin(far, axis=-2), "from_well": mx.sqrt(far.min(-2))}
        return seen

    def clamp(self, a: mx.array, clamp: Clamp, value: float | mx.array, first: int) -> mx.array:
        """As `clamp_balls`."""
        return clamp_balls(a, clamp, value, first, self._kappa)


def within_ball(a: mx.array, kappa: float) -> mx.array:
    """a; outside the ball of radius kappa^(-1/2), where translations have poles, the point of its surface in
    that direction. Shapes: [3, ...] -> [3, ...].
    """
    return a * mx.rsqrt(mx.maximum(1, kappa * mx.square(a).sum(0)))


def observe_balls(a: mx.array, kappa: float) -> dict[str, mx.array]:
    """R, azimuth psi and tilt from the third axis, radians. Shapes: a [B, T, 3, G] -> [B, T, G] each."""
    x, y, z = components(a)
    size = mx.sqrt(mx.square(a).sum(-2))
    return {
        "R": sphere_order(size, kappa),
        "psi": mx.arctan2(y, x),
        "tilt": mx.arctan2(mx.sqrt(x * x + y * y), z),
    }


def clamp_balls(a: mx.array, clamp: Clamp, value: float | mx.array, first: int, kappa: float) -> mx.array:
    """Hold R, psi or tilt of some populations on the clamp's tokens, leaving the other two as they are.

    Shapes: a [B, T, 3, G], whose first token has index `first` in the call; value broadcasts to [B, T, G]. At
        a = 0 psi counts as 0 and tilt as 90 degrees.
    """
    x, y, z = components(a)
    size, flat = mx.sqrt(mx.square(a).sum(-2)), mx.sqrt(x * x + y * y)
    value = mx.broadcast_to(mx.array(value, a.dtype), x.shape)
    psi = value if clamp.site == "psi" else mx.arctan2(y, x)
    tilt = value if clamp.site == "tilt" else mx.where(size > 0, mx.arctan2(flat, z), math.pi / 2)
    if clamp.site == "R":
        size = sphere_size(value, kappa)
    level = size * mx.sin(tilt)
    new = mx.stack([level * mx.cos(psi), level * mx.sin(psi), size * mx.cos(tilt)], -2)
    where = mask_clamped(clamp, first, a.shape[1], a.shape[3])[:, None]
    return mx.where(where, new, a)


def features(a: mx.array, harmonics: int) -> list[mx.array]:
    """The solid harmonics of degree 1 and 2: 3 and 5 numbers of each population.

    Shapes: a [B, T, 3, G] -> arrays [B, T, G].
    """
    x, y, z = components(a)
    if harmonics == 1:
        return [x, y, z]
    return [x, y, z, x * y, y * z, z * x, (x * x - y * y) / 2, z * z - (x * x + y * y) / 2]


def count_features(harmonics: int) -> int:
    """Numbers read out of each population on a sphere. Raises: ConfigError for harmonics above 2."""
    if harmonics > 2:
        raise ConfigError(f"model.harmonics is 1 or 2 with populations on spheres, got {harmonics}")
    return 3 if harmonics == 1 else 8


def directions(key: mx.array, *shape: int) -> mx.array:
    """Uniform on the sphere. Shapes: -> [3, *shape]."""
    v = mx.random.normal((3, *shape), key=key)
    return v / mx.linalg.norm(v, axis=0, keepdims=True)
