"""N Kuramoto populations for each of I channels: K-SSM's state as wide as Mamba's.

    r, B, C = W_x u;   Delta = softplus(W_Delta r + b);   h = field B Delta u
    y = the sum of Re(conj(C) z) / field over the populations z of the channel, which h moves

B and C, complex, are shared by all channels. Scaled by `field` on the way in and by its inverse on the way
out, the linear part does not depend on it; the curvature, and so how far |z| comes towards 1, does. On
spheres B and C are vectors, and with them a token brings what it turns the populations by.
`ops.expanded_scan` and `ops.expanded_ball` have the recurrences.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import Clamp
from kssm_mlx.models.interventions.spec import Inside
from kssm_mlx.models.layers import inverse_softplus, linear
from kssm_mlx.models.populations import clamp_states, clamped_states, log_scale, state_before
from kssm_mlx.models.spheres import clamp_balls, directions, observe_balls, within_ball
from kssm_mlx.ops.ball_scan import ball_scan
from kssm_mlx.ops.elementary import softplus
from kssm_mlx.ops.expanded_ball import expanded_ball, expanded_rotors_and_kicks
from kssm_mlx.ops.expanded_scan import expanded_maps, expanded_scan
from kssm_mlx.ops.maps.scan import after_first
from kssm_mlx.ops.mobius_scan import disc_scan
from kssm_mlx.ops.scan import mask_tokens as within
from kssm_mlx.oscillators.ball import sphere_order
from kssm_mlx.oscillators.mobius import Disc
from kssm_mlx.oscillators.planar import Planar

# Time steps at the start, log-uniform: memories from ten to a thousand tokens at gamma = 1.
SHORTEST_STEP, LONGEST_STEP = 1e-3, 0.1
USUAL_STEP = math.sqrt(SHORTEST_STEP * LONGEST_STEP)


class Moved(NamedTuple):
    """What the populations did over the tokens of a call.

    y: what is read out of them [B, T, I], fp32; carried: the states after the last token [B, C, I N], of C
    components; trace: R, psi, h, dt and lyapunov of every population [B, T, I N], of spheres tilt and angle
    too, the state, and per channel mean_R (at the root mean square of |z|) and mean_h [B, T, I], which do not
    need every state of every token in memory.
    """

    y: mx.array
    carried: mx.array
    trace: dict[str, mx.array]


class Drive(NamedTuple):
    """What a token does; spin on spheres only.

    Shapes: dt [B, T, I]; write and read, which are B and C, and spin [B, T, C, N].
    """

    dt: mx.array
    write: mx.array
    read: mx.array
    spin: Any = None


class ExpandedPopulations(nn.Module):
    """N populations of phases a channel, and what a token does to them.

    Parameters: omega [I, N], radians per unit time, 0 at the start; log_gamma [I, N], gamma 1, 2, ..., N at
    the start; x_proj u [I] -> r, B, C; dt_proj r -> Delta [I].
    Source: Gu & Dao 2023, "Mamba", section 3.6, for the parameters and their start.
    """

    components = 2

    def __init__(
        self, key: mx.array, channels: int, N: int, *, rank: int, kappa: float, field: float, spins: int = 0
    ):
        super().__init__()
        keys = mx.random.split(key, 3)
        shared = 2 * self.components * N + self.components * spins
        self.x_proj = linear(keys[0], channels, rank + shared, std=(3 * channels) ** -0.5)
        self.dt_proj = linear(keys[1], rank, channels, std=(3 * rank) ** -0.5, bias=True)
        steps = mx.random.uniform(math.log(SHORTEST_STEP), math.log(LONGEST_STEP), (channels,), key=keys[2])
        self.dt_proj.bias = inverse_softplus(mx.exp(steps))
        self.log_gamma = mx.log(mx.broadcast_to(mx.arange(1, N + 1, dtype=mx.float32), (channels, N)))
        self.omega = mx.zeros((channels, N))
        cuts = [rank + i * self.components * N for i in range(3)]
        self._split, self._kappa, self._field = cuts if spins else cuts[:2], kappa, field

    def run(
        self,
        u: mx.array,
        state: mx.array | None,
        clamps: tuple[Clamp, ...] = (),
        resets: mx.array | None = None,
        lengths: mx.array | None = None,
        inside: Inside | None = None,
    ) -> Moved:
        """Shapes: u [B, T, I]; state [B, C, I N]; resets [B, T] bool; lengths [B] int."""
        drive = self.drive(u, inside)
        x = self._field * drive.dt * u
        old = None if state is None else mx.unflatten(state, -1, self.log_gamma.shape)
        y, power, new = self.scan(x, drive, old, resets, lengths)
        carried, in_state = new.flatten(2), tuple(c for c in clamps if c.where == "state")
        # Every state written out: computed only where somebody asks for the trace, or holds a state.
        z = free = self.states(x, drive, state, in_state, resets, lengths)
        for clamp in clamps:
            z = self.clamp(z, clamp, clamp.value, 0)
        if clamps:
            y = self.read(z, drive.read)
        if in_state:
            carried = self.stacked(free)[:, -1]
        N = drive.write.shape[-1]
        sizes = mx.sqrt(mx.square(drive.write).sum(2))
        trace = {
            **self.observe(z, drive),
            "h": (mx.abs(x)[..., None] * sizes[:, :, None]).flatten(2),
            "dt": mx.repeat(drive.dt, N, axis=-1),
            "lyapunov": self.lyapunov(free, state, drive.dt, resets),
            "state": carried,
            "mean_R": self.order(mx.sqrt(power / N)),
            "mean_h": mx.abs(x) * sizes.mean(-1, keepdims=True),
        }
        return Moved(y / self._field, carried, trace)

    def advance_state(self, u: mx.array, state: mx.array) -> mx.array:
        """The states after these inputs. Shapes: u [B, T, I]; state [B, C, I N] -> [B, C, I N]."""
        return self.run(u, state).carried

    @property
    def gamma(self) -> mx.array:
        """Width of each population. Shapes: [I, N]."""
        return mx.exp(self.log_gamma)

    def drive(self, u: mx.array, inside: Inside | None = None) -> Drive:
        """Shapes: u [B, T, I]."""
        r, *shared = mx.split(self.x_proj(inside.detach_routing(u) if inside else u), self._split, axis=-1)
        dt = softplus(self.dt_proj(r).astype(mx.float32))
        shared = (mx.unflatten(v, -1, (self.components, -1)) for v in shared)
        return Drive(inside.detach_routing(dt) if inside else dt, *shared)

    # What differs between phases and spheres. z, the states of all tokens, is of the kind that clamps take.

    def scan(self, x: mx.array, drive: Drive, state: mx.array | None, resets, lengths) -> Any:
        """y, the power and the last state. Shapes: x [B, T, I]; state [B, C, I, N]."""
        rates = self.gamma, self.omega, self._kappa
        return expanded_scan(
            x, drive.dt, drive.write, drive.read, *rates, state, resets=resets, lengths=lengths
        )

    def states(self, x, drive: Drive, state, clamps: tuple[Clamp, ...], resets, lengths) -> Any:
        """z after every token, held where a clamp says so. Shapes: state [B, C, I N]; z [B, T, I N]."""
        valid = None if lengths is None else within(lengths, x.shape[1])
        kappa = mx.full(self.log_gamma.shape, self._kappa)
        maps = expanded_maps(x, drive.dt, drive.write, self.gamma, self.omega, kappa, resets, valid)
        z0 = None if state is None else Planar(state[:, 0], state[:, 1])

        def step(start: int, stop: int, z: Planar | None) -> Planar:
            return disc_scan(Disc(*(m.map(lambda part: part[:, start:stop]) for m in maps)), z)

        if not clamps:
            return step(0, x.shape[1], z0)
        return clamped_states(step, clamps, z0, maps.q.re, valid, self.clamp)

    def clamp(self, z: Any, clamp: Clamp, value: float | mx.array, first: int) -> Any:
        """Hold R or psi, as `populations.clamp_states`."""
        return clamp_states(z, clamp, value, first)

    def stacked(self, z: Any) -> mx.array:
        """z as one array. Shapes: -> [B, T, C, I N]."""
        return mx.stack([z.re, z.im], axis=2)

    def read(self, z: Any, read: mx.array) -> mx.array:
        """y / field. Shapes: read [B, T, C, N] -> [B, T, I]."""
        each = mx.unflatten(self.stacked(z), -1, self.log_gamma.shape)
        return (read[:, :, :, None] * each).sum((2, 4))

    def order(self, size: mx.array) -> mx.array:
        """R where |z| = size."""
        return size

    def observe(self, z: Any, drive: Drive) -> dict[str, mx.array]:
        """R and psi. Shapes: -> [B, T, I N] each."""
        return {"R": mx.sqrt(z.abs2), "psi": mx.arctan2(z.im, z.re)}

    def lyapunov(self, z: Any, state: mx.array | None, dt: mx.array, resets) -> mx.array:
        """ln |dz_t / dz_{t-1}| (`log_scale`). Shapes: [B, T, I N]."""
        z0 = None if state is None else Planar(state[:, 0], state[:, 1])
        lost = (self.gamma * dt[..., None]).flatten(-2)
        return log_scale(lost, state_before(z, z0, resets).abs2, z.abs2, self._kappa)


class ExpandedSpheres(ExpandedPopulations):
    """N populations on spheres a channel.

    Parameters: as of phases, but omega [3, I, N], a rotation per unit time; gamma 1, 2, ..., N times what
    forgets in `memory` tokens at the start, in a channel of the usual time step; start [3, I, N], where a
    document begins; x_proj gives one vector more, by which a token turns the first `spins` populations of
    every channel, rotation Delta / USUAL_STEP times as far: one that does not listen to a token is not turned
    by it.

    rotation: how far at the start, radians, in a channel of the usual time step, and by how much more or less
    a change of x_proj turns; size: |a| where a document begins, in random directions.
    """

    components = 3

    def __init__(
        self,
        key: mx.array,
        channels: int,
        N: int,
        *,
        rank: int,
        kappa: float,
        field: float,
        memory: float,
        spins: int,
        rotation: float,
        size: float,
    ):
        super().__init__(key, channels, N, rank=rank, kappa=kappa, field=field, spins=spins)
        keys = mx.random.split(mx.random.split(key)[1])
        self.omega = mx.zeros((3, channels, N))
        self.log_gamma = self.log_gamma - math.log(memory * USUAL_STEP)
        self.start = size * directions(keys[0], channels, N)
        if spins:
            turns = channels**-0.5 * mx.random.normal((3 * spins, channels), key=keys[1])
            others = self.x_proj.weight[: -3 * spins]
            self.x_proj.weight = mx.concatenate([others, turns])
        self._turn = rotation / USUAL_STEP

    @property
    def origin(self) -> mx.array:
        """Where a document begins, which training may have put outside the ball. Shapes: [3, I, N]."""
        return within_ball(self.start, self._kappa)

    def drive(self, u: mx.array, inside: Inside | None = None) -> Drive:
        """Shapes: u [B, T, I]."""
        drive, N = super().drive(u, inside), self.log_gamma.shape[1]
        if drive.spin is None:
            return drive._replace(spin=mx.zeros(drive.write.shape, drive.write.dtype))
        rest = N - drive.spin.shape[-1]
        spin = mx.pad(drive.spin, [(0, 0)] * 3 + [(0, rest)]) if rest else drive.spin
        return drive._replace(spin=self._turn * spin)

    def scan(self, x: mx.array, drive: Drive, state: mx.array | None, resets, lengths) -> Any:
        """Shapes: x [B, T, I]; state [B, 3, I, N]."""
        shared = drive.write, drive.read, drive.spin
        rates = self.gamma, self.omega, self._kappa, self.origin
        return expanded_ball(x, drive.dt, *shared, *rates, state, resets=resets, lengths=lengths)

    def states(self, x, drive: Drive, state, clamps: tuple[Clamp, ...], resets, lengths) -> Any:
        """Shapes: state [B, 3, I N] -> [B, T, 3, I N]."""
        valid = None if lengths is None else within(lengths, x.shape[1])
        kappa = mx.full(self.log_gamma.shape, self._kappa)
        rates = self.gamma, self.omega, kappa, self.origin
        rotors, kicks = expanded_rotors_and_kicks(x, drive.dt, drive.write, drive.spin, *rates, resets, valid)
        a0 = self._begin(x.shape[0]) if state is None else state

        def step(first: int, stop: int, a: mx.array) -> mx.array:
            return ball_scan(rotors[:, first:stop], kicks[:, first:stop], a, self._kappa)

        if not clamps:
            return step(0, x.shape[1], a0)
        return clamped_states(step, clamps, a0, kicks[:, :, 0], valid, self.clamp)

    def clamp(self, z: Any, clamp: Clamp, value: float | mx.array, first: int) -> Any:
        """Hold R, psi or tilt, as `spheres.clamp_balls`."""
        return clamp_balls(z, clamp, value, first, self._kappa)

    def stacked(self, z: Any) -> mx.array:
        """z, which is one array."""
        return z

    def order(self, size: mx.array) -> mx.array:
        """R where |a| = size."""
        return sphere_order(size, self._kappa)

    def observe(self, z: Any, drive: Drive) -> dict[str, mx.array]:
        """R, psi, tilt, and the angle that a token turns by. Shapes: -> [B, T, I N] each."""
        turns = drive.dt[:, :, None, :, None] * (self.omega + drive.spin[:, :, :, None])
        return {**observe_balls(z, self._kappa), "angle": mx.sqrt(mx.square(turns).sum(2)).flatten(2)}

    def lyapunov(self, z: Any, state: mx.array | None, dt: mx.array, resets) -> mx.array:
        """ln |det da_t / da_{t-1}| / 3, the same in every direction. Shapes: [B, T, I N]."""
        before = after_first(self._begin(z.shape[0]) if state is None else state, z)
        if resets is not None:
            before = mx.where(resets[..., None, None], self.origin.flatten(1), before)
        was, now = (mx.square(v).sum(2) for v in (before, z))
        return log_scale((self.gamma * dt[..., None]).flatten(-2), was, now, self._kappa)

    def _begin(self, rows: int) -> mx.array:
        return mx.broadcast_to(self.origin.flatten(1), (rows, 3, self.log_gamma.size))
