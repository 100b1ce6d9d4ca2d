"""N Kuramoto populations for each of I channels: K-SSM's state as wide as Mamba's (ops/expanded_scan.py).

    r, B, C = W_x u;   Delta = softplus(W_Delta r + b);   h = field B Delta u
    y = the sum of Re(conj(C) z) / field over the populations z of the channel, which h moves

B and C, complex, are shared by all channels. Scaled by `field` on the way in and by its inverse on the way
out, the linear part does not depend on it; the curvature, and so how far |z| comes towards 1, does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import Clamp
from kssm_mlx.models.interventions.spec import Inside
from kssm_mlx.models.layers import inverse_softplus, linear
from kssm_mlx.models.populations import clamp_states, clamped_states, state_before
from kssm_mlx.ops.elementary import exp, softplus
from kssm_mlx.ops.expanded_scan import expanded_maps, expanded_scan
from kssm_mlx.ops.mobius_scan import disc_scan
from kssm_mlx.ops.scan import mask_tokens as within
from kssm_mlx.oscillators.mobius import Disc
from kssm_mlx.oscillators.planar import Planar

# Time steps at the start, log-uniform: memories from ten to a thousand tokens at gamma = 1.
SHORTEST_STEP, LONGEST_STEP = 1e-3, 0.1


class Moved(NamedTuple):
    """What the populations did over the tokens of a call.

    y: what is read out of them [B, T, I], fp32; carried: the states after the last token [B, 2, I N]; trace:
    R, psi, h, dt and lyapunov of every population [B, T, I N], the state, and per channel mean_R (root mean
    square) and mean_h [B, T, I], which do not need every state of every token in memory.
    """

    y: mx.array
    carried: mx.array
    trace: dict[str, mx.array]


class ExpandedPopulations(nn.Module):
    """N populations a channel, and what a token does to them.

    Parameters: omega [I, N], radians per unit time, 0 at the start; log_gamma [I, N], gamma 1, 2, ..., N at
    the start; x_proj u [I] -> r, B, C; dt_proj r -> Delta [I].
    Source: Gu & Dao 2023, "Mamba", section 3.6, for the parameters and their start.
    """

    def __init__(self, key: mx.array, channels: int, N: int, *, rank: int, kappa: float, field: float):
        super().__init__()
        keys = mx.random.split(key, 3)
        self.x_proj = linear(keys[0], channels, rank + 4 * N, std=(3 * channels) ** -0.5)
        self.dt_proj = linear(keys[1], rank, channels, std=(3 * rank) ** -0.5, bias=True)
        steps = mx.random.uniform(math.log(SHORTEST_STEP), math.log(LONGEST_STEP), (channels,), key=keys[2])
        self.dt_proj.bias = inverse_softplus(mx.exp(steps))
        self.log_gamma = mx.log(mx.broadcast_to(mx.arange(1, N + 1, dtype=mx.float32), (channels, N)))
        self.omega = mx.zeros((channels, N))
        self._split, self._kappa, self._field = [rank, rank + 2 * N], kappa, field

    def run(
        self,
        u: mx.array,
        state: mx.array | None,
        clamps: tuple[Clamp, ...] = (),
        resets: mx.array | None = None,
        lengths: mx.array | None = None,
        inside: Inside | None = None,
    ) -> Moved:
        """Shapes: u [B, T, I]; state [B, 2, I N]; resets [B, T] bool; lengths [B] int."""
        dt, B, C = self.drive(u, inside)
        x = self._field * dt * u
        old = None if state is None else mx.unflatten(state, -1, self.omega.shape)
        rates = self.gamma, self.omega, self._kappa
        y, power, new = expanded_scan(x, dt, B, C, *rates, old, resets=resets, lengths=lengths)
        carried, in_state = new.flatten(2), tuple(c for c in clamps if c.where == "state")
        # Every state written out: computed only where somebody asks for the trace, or holds a state.
        z = free = self._states(x, dt, B, state, in_state, resets, lengths)
        for clamp in clamps:
            z = clamp_states(z, clamp, clamp.value, 0)
        if clamps:
            read = z.map(lambda part: mx.unflatten(part, -1, (-1, B.shape[-1])))
            y = (C[:, :, 0, None] * read.re + C[:, :, 1, None] * read.im).sum(-1)
        if in_state:
            carried = mx.stack([free.re[:, -1], free.im[:, -1]], axis=1)
        sizes = mx.sqrt(mx.square(B).sum(2))
        trace = {
            "R": mx.sqrt(z.abs2),
            "psi": mx.arctan2(z.im, z.re),
            "h": (mx.abs(x)[..., None] * sizes[:, :, None]).flatten(2),
            "dt": mx.repeat(dt, B.shape[-1], axis=-1),
            "lyapunov": self._lyapunov(free, state, dt, resets),
            "state": carried,
            "mean_R": mx.sqrt(power / B.shape[-1]),
            "mean_h": mx.abs(x) * sizes.mean(-1, keepdims=True),
        }
        return Moved(y / self._field, carried, trace)

    def advance_state(self, u: mx.array, state: mx.array) -> mx.array:
        """The states after these inputs. Shapes: u [B, T, I]; state [B, 2, I N] -> [B, 2, I N]."""
        return self.run(u, state).carried

    @property
    def gamma(self) -> mx.array:
        """Width of each population. Shapes: [I, N]."""
        return mx.exp(self.log_gamma)

    def drive(self, u: mx.array, inside: Inside | None = None) -> tuple[mx.array, mx.array, mx.array]:
        """Time step, and the directions of writing and reading.

        Shapes: u, dt [B, T, I]; B, C [B, T, 2, N].
        """
        r, B, C = mx.split(self.x_proj(inside.detach_routing(u) if inside else u), self._split, axis=-1)
        dt = softplus(self.dt_proj(r).astype(mx.float32))
        B, C = (mx.unflatten(v, -1, (2, -1)) for v in (B, C))
        return (inside.detach_routing(dt) if inside else dt), B, C

    def _states(self, x, dt, B, state, clamps: tuple[Clamp, ...], resets, lengths) -> Planar:
        """States after every token, held where a clamp says so. Shapes: state [B, 2, I N] -> [B, T, I N]."""
        valid = None if lengths is None else within(lengths, x.shape[1])
        kappa = mx.full(self.omega.shape, self._kappa)
        maps = expanded_maps(x, dt, B, self.gamma, self.omega, kappa, resets, valid)
        z0 = None if state is None else Planar(state[:, 0], state[:, 1])

        def step(start: int, stop: int, z: Planar | None) -> Planar:
            return disc_scan(Disc(*(m.map(lambda part: part[:, start:stop]) for m in maps)), z)

        if not clamps:
            return step(0, x.shape[1], z0)
        return clamped_states(step, clamps, z0, maps.q.re, valid, clamp_states)

    def _lyapunov(self, z: Planar, state: mx.array | None, dt: mx.array, resets) -> mx.array:
        """ln |dz_t / dz_{t-1}|, which |z| alone decides (`Populations.lyapunov`). Shapes: [B, T, I N]."""
        z0 = None if state is None else Planar(state[:, 0], state[:, 1])
        lost = (self.gamma * dt[..., None]).flatten(-2)
        shrunk = exp(-2 * lost) * state_before(z, z0, resets).abs2
        r2_after, r2_before = (mx.minimum(self._kappa * r2, 1 - 6e-8) for r2 in (z.abs2, shrunk))
        return -lost + mx.log((1 - r2_after) / (1 - r2_before))
