"""G Kuramoto populations as a recurrent layer: what a token does to them, how they move, what can be held.

a_t = exp((i omega - gamma) Delta_t),   k_t = kick(h_t Delta_t),
z_t = (a_t z_{t-1} + k_t) / (1 + kappa conj(k_t) a_t z_{t-1})                    leaf "kick"
z_t = the flow of z' = (i omega - gamma) z + h_t - kappa conj(h_t) z^2 over Delta_t    leaf "hold"
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import Clamp, mask_clamped
from kssm_mlx.models.interventions.spec import Inside
from kssm_mlx.models.layers import inverse_softplus, linear
from kssm_mlx.ops.elementary import exp, softplus
from kssm_mlx.ops.maps.scan import after_first
from kssm_mlx.ops.mobius_scan import disc_scan, flow, kick, mobius_scan
from kssm_mlx.oscillators.mobius import Disc, derivative, hold_leaf
from kssm_mlx.oscillators.planar import Planar


class Moved(NamedTuple):
    """What populations of one kind did over the tokens of a call.

    features: what is read out, arrays [B, T, G]; carried: the states after the last token [B, C, G]; above:
    what the block above feels; trace: R, psi, h, dt, lyapunov [B, T, G] and what the kind has besides.
    """

    features: list[mx.array]
    carried: mx.array
    above: tuple[mx.array, ...]
    trace: dict[str, mx.array]


class Populations(nn.Module):
    """G Kuramoto populations: frequencies, widths, and what a token does to them.

    Parameters: omega [G] radians per unit time; log_gamma [G]; the field h = W_h u (complex) of inputs u [D];
    the time step Delta = softplus(W_dt u + b), 1 at the start; the coupling to the block below, K [2, G]
    (complex).
    """

    def __init__(
        self,
        key: mx.array,
        D: int,
        G: int,
        *,
        memory: int,
        kappa: float,
        leaf: str,
        coupled: bool,
        field: float = 0.3,
        shortest: float = 2.0,
    ):
        super().__init__()
        keys = mx.random.split(key, 4)
        self.omega, self.log_gamma = spectrum(keys[0], G, memory, shortest)
        # At 0.3 |h| starts near 0.1. Memory falls steeply with it: the slowest third starts quieter still.
        quiet = mx.where(mx.argsort(mx.argsort(self.log_gamma)) < G // 3, 0.3, 1.0)
        self.field = linear(keys[1], D, 2 * G, std=field * D**-0.5)
        self.field.weight = self.field.weight * mx.concatenate([quiet, quiet])[:, None]
        self.time_step = linear(keys[2], D, G, std=0.0, bias=True)
        self.time_step.bias = inverse_softplus(mx.ones((G,)))
        if coupled:
            self.coupling = mx.zeros((2, G))
        self._kappa, self._leaf = kappa, leaf

    def add_knobs(self) -> None:
        """k_scale [], the gain of the field, 1, and sigma [], the strength of noise on the phases, 0: frozen.

        Noise that is independent and Cauchy keeps a population on its manifold and widens it: gamma + sigma.
        Of infinitely many oscillators it leaves nothing random, so nothing is drawn, in training neither.
        Source: Toenjes & Pikovsky 2020, Phys. Rev. E 102, 052315.
        """
        self.k_scale, self.sigma = mx.array(1.0), mx.array(0.0)
        self.freeze(keys=["k_scale", "sigma"], recurse=False)

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
        """Shapes: u [B, T, D]; below two arrays [B, T, G]; state [B, 2, G]; resets, valid [B, T] bool."""
        z0 = None if state is None else Planar(state[:, 0], state[:, 1])
        h, dt = self.drive(u, None if below is None else Planar(*below))
        if inside:
            h, dt = h.map(inside.detach_routing), inside.detach_routing(dt)
        in_state = tuple(c for c in clamps if c.where == "state")
        z = free = self.evolve(h, dt, z0, in_state, resets, valid)
        for clamp in clamps:
            z = clamp_states(z, clamp, clamp.value, 0)
        powers = [z**n for n in range(1, harmonics + 1)]
        # The free states go on, unless a clamp says "state": a clamped readout must not change the dynamics.
        carried = mx.stack([free.re[:, -1], free.im[:, -1]], axis=1)
        trace = {
            "R": mx.sqrt(z.abs2),
            "psi": mx.arctan2(z.im, z.re),
            "h": mx.sqrt(h.abs2),
            "dt": dt,
            "lyapunov": self.lyapunov(free, z0, h, dt, resets),
            "state": carried,
        }
        above = (
            z.map(inside.silence_units) if inside else z
        )  # neither does the block above feel what is silenced
        return Moved([part for zn in powers for part in (zn.re, zn.im)], carried, (above.re, above.im), trace)

    def advance_state(self, u: mx.array, state: mx.array) -> mx.array:
        """The states after these inputs. Shapes: u [B, T, D]; state [B, 2, G] -> [B, 2, G]."""
        z = self.evolve(*self.drive(u, None), Planar(state[:, 0], state[:, 1]))
        return mx.stack([z.re[:, -1], z.im[:, -1]], axis=1)

    @property
    def gamma(self) -> mx.array:
        """Width of each population, noise included. Shapes: [G]."""
        gamma = mx.exp(self.log_gamma)
        return gamma + self.sigma if "sigma" in self else gamma

    def drive(self, u: mx.array, below: Planar | None) -> tuple[Planar, mx.array]:
        """Field and time step of each token, fp32. Shapes: u [B, T, D] -> h [B, T, G], Delta [B, T, G]."""
        field = self.field(u).astype(mx.float32)
        h = Planar(*mx.split(field, 2, axis=-1))
        if below is not None and "coupling" in self:
            h = h + Planar(self.coupling[0], self.coupling[1]) * below
        if "k_scale" in self:
            h = h * self.k_scale
        return h, softplus(self.time_step(u).astype(mx.float32))

    def evolve(
        self,
        h: Planar,
        dt: mx.array,
        z0: Planar | None,
        clamps: tuple[Clamp, ...] = (),
        resets: mx.array | None = None,
        valid: mx.array | None = None,
    ) -> Planar:
        """States after every token. Shapes: h, dt, z [B, T, G]; resets, valid [B, T] bool."""
        step = self._steps(h, dt, resets, valid)
        if not clamps:
            return step(0, h.shape[1], z0)
        return clamped_states(step, clamps, z0, dt, valid, clamp_states)

    def _steps(self, h: Planar, dt: mx.array, resets: mx.array | None, valid: mx.array | None):
        """(start, stop, z0) -> states of those tokens."""
        if self._leaf == "hold":
            maps = _masked_maps(self._hold(h, dt), resets, valid)
            return lambda i, j, z0: disc_scan(Disc(*(m.map(lambda x: x[:, i:j]) for m in maps)), z0)
        a, k = flow(self.gamma * dt, self.omega * dt), kick(h * dt, self._kappa)
        a, k = _masked_kicks(a, k, resets, valid)
        return lambda i, j, z0: mobius_scan(
            a.map(lambda x: x[:, i:j]), k.map(lambda x: x[:, i:j]), z0, self._kappa
        )

    def _hold(self, h: Planar, dt: mx.array) -> Disc:
        lam = Planar(-self.gamma, self.omega).complex
        return Disc(*map(Planar.of, hold_leaf(lam, h.complex, dt, self._kappa)))

    def lyapunov(
        self, z: Planar, z0: Planar | None, h: Planar, dt: mx.array, resets: mx.array | None = None
    ) -> mx.array:
        """ln |dz_t / dz_{t-1}| per token and population.

        Shapes: z, h, dt [B, T, G]; z0 [B, G]; resets [B, T] bool.
        """
        before = state_before(z, z0, resets)
        if self._leaf == "hold":
            return 0.5 * mx.log(derivative(self._hold(h, dt), before).abs2)
        return log_scale(self.gamma * dt, before.abs2, z.abs2, self._kappa)


def log_scale(gamma_tau: mx.array, before: mx.array, after: mx.array, kappa: float) -> mx.array:
    """ln of what friction and a kick scale lengths by, from |z|^2 before and after both.

    Shapes: all as the result. Kicks are conformal, so that every direction has it. Rounding can put R at 1,
    where ln would be infinite: 6e-8 is the least distance fp32 can tell.
    """
    shrunk = exp(-2 * gamma_tau) * before
    r2_after, r2_before = (mx.minimum(kappa * r2, 1 - 6e-8) for r2 in (after, shrunk))
    return -gamma_tau + mx.log((1 - r2_after) / (1 - r2_before))


def state_before(z: Planar, z0: Planar | None, resets: mx.array | None) -> Planar:
    """The state each token meets; a document begins at z = 0, whatever the state of the one before it.

    Shapes: z [B, T, G]; z0 [B, G]; resets [B, T] bool -> [B, T, G].
    """
    first = Planar.zeros((z.shape[0], z.shape[2])) if z0 is None else z0
    before = Planar(after_first(first.re, z.re), after_first(first.im, z.im))
    return before if resets is None else before.map(lambda x: mx.where(resets[..., None], 0.0, x))


def spectrum(key: mx.array, G: int, memory: int, shortest: float = 2.0) -> tuple[mx.array, mx.array]:
    """omega uniform in [0, pi/2], half of them a tenth of that; gamma from 1/memory to 1/shortest, mixed."""
    k_omega, k_half, k_order = mx.random.split(key, 3)
    omega = mx.random.uniform(0, math.pi / 2, (G,), key=k_omega)
    omega = omega * mx.where(mx.random.permutation(G, key=k_half) % 2 == 0, 0.1, 1.0)
    log_gamma = mx.linspace(-math.log(max(memory, 4)), -math.log(shortest), G)
    return omega, log_gamma[mx.random.permutation(G, key=k_order)]


def _masked_kicks(a: Planar, k: Planar, resets, valid) -> tuple[Planar, Planar]:
    """A reset forgets (a = 0); padding does nothing (a = 1, k = 0)."""
    if resets is not None:
        a = a * (1 - resets.astype(mx.float32))[..., None]
    if valid is not None:
        v = valid[..., None]
        a = Planar(mx.where(v, a.re, 1.0), mx.where(v, a.im, 0.0))
        k = k.map(lambda x: mx.where(v, x, 0.0))
    return a, k


def _masked_maps(m: Disc, resets, valid) -> Disc:
    """The same for general maps: a reset keeps q alone; padding is the identity."""
    q, r, d = m
    if resets is not None:
        keep = (1 - resets.astype(mx.float32))[..., None]
        r, d = r * keep, d * keep
    if valid is not None:
        v = valid[..., None]
        q, r = (x.map(lambda y: mx.where(v, y, 0.0)) for x in (q, r))
        d = Planar(mx.where(v, d.re, 1.0), mx.where(v, d.im, 0.0))
    return Disc(q, r, d)


def clamp_states(z: Planar, clamp: Clamp, value: float | mx.array, first: int) -> Planar:
    """Hold R or psi of some populations on the clamp's tokens, exactly, leaving the other one as it is.

    Shapes: z [B, T, G], whose first token has index `first` in the call; value broadcasts to it. At z = 0,
        psi counts as 0.
    """
    R, psi = mx.sqrt(z.abs2), mx.arctan2(z.im, z.re)
    value = mx.broadcast_to(mx.array(value, z.dtype), z.shape)
    new = Planar.polar(value, psi) if clamp.site == "R" else Planar.polar(R, value)
    return select_plane(mask_clamped(clamp, first, z.shape[1], z.shape[2]), new, z)


def select_plane(where: mx.array, yes: Planar, no: Planar) -> Planar:
    """`mx.where` of both planes."""
    return Planar(mx.where(where, yes.re, no.re), mx.where(where, yes.im, no.im))


def clamped_states(
    step: Callable[[int, int, Any], Any],
    clamps: tuple[Clamp, ...],
    z0: Any,
    like: mx.array,
    valid: mx.array | None,
    clamp_states: Callable[[Any, Clamp, mx.array, int], Any],
) -> Any:
    """States when a clamp acts on the carried state: token by token where it holds, in parallel elsewhere.

    Padding keeps the state of the last token, clamped or not. States are Planar [B, T, G] or arrays
    [B, T, 3, G], as step(start, stop, z0) and clamp_states(z, clamp, value, first) have them; like [B, T, G].
    """
    T = like.shape[1]
    start = min(T, max(0, min(c.start for c in clamps)))
    # Before and behind the clamp the scan is parallel; only where it holds is every token waited for.
    stop = max(start, min(T, max(T if c.stop is None else c.stop for c in clamps)))
    pieces = [step(0, start, z0)] if start else []
    z = _map_states(lambda x: x[:, -1], pieces[-1]) if pieces else z0
    values = [mx.broadcast_to(mx.array(c.value, like.dtype), like.shape) for c in clamps]
    for t in range(start, stop):
        zt = step(t, t + 1, z)
        for clamp, value in zip(clamps, values):
            new = clamp_states(zt, clamp, value[:, t : t + 1], t)
            zt = new if valid is None else _select_states(valid[:, t : t + 1], new, zt)
        pieces.append(zt)
        z = _map_states(lambda x: x[:, -1], zt)
    if stop < T:
        pieces.append(step(stop, T, z))
    return _map_states(lambda *parts: mx.concatenate(list(parts), axis=1), *pieces)


def _map_states(f: Callable[..., mx.array], *states: Any) -> Any:
    """f of the arrays that states are made of."""
    if isinstance(states[0], Planar):
        return Planar(f(*(z.re for z in states)), f(*(z.im for z in states)))
    return f(*states)


def _select_states(where: mx.array, yes: Any, no: Any) -> Any:
    """One state or the other. Shapes: where [B, T]."""

    def choose(x: mx.array, y: mx.array) -> mx.array:
        return mx.where(where.reshape(*where.shape, *[1] * (x.ndim - 2)), x, y)

    return _map_states(choose, yes, no)
