"""Kuramoto populations that also feel themselves: two attractors of R at zero field, a memory that is kept.

A population whose field is h alone forgets: at h = 0 its state falls to 0 from anywhere. With pairwise and
triadic coupling to its own mean field,

    z' = (i omega - gamma) z + H - conj(H) z^2,   H = h + (K1 + K2 |z|^2) z / 2

incoherence, R = 0, and a coherent state are both stable at h = 0, between the saddle-node and the loss of
incoherence: -K2 + 2 sqrt(2 gamma K2) < K1 < 2 gamma (`oscillators.theory`). A strong token moves a population
from one to the other, and there it stays. A token is

    w = exp(i omega Delta) z_{t-1},   H = h_t + (K1 + K2 |w|^2) w / 2,
    z_t = the flow of z' = -gamma z + H - conj(H) z^2 over Delta from w, H held

R rests under this map exactly where it rests under the equation, and for K1, K2 >= 0 it is as stable there,
whatever Delta: R_t increases with R_{t-1} and never passes a point of rest. It is no disc map of z_{t-1}, so
nothing composes: time is serial, one token after the other.

Source: Skardal & Arenas 2020; Ott & Antonsen 2008.
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.models.populations import Populations, select_plane, state_before
from kssm_mlx.ops.elementary import sincos
from kssm_mlx.oscillators.planar import Planar


class SelfCoupledPopulations(Populations):
    """`Populations` with self_coupling [2, G]: K1 and K2 of each, in units of its own width gamma."""

    def __init__(
        self,
        key: mx.array,
        D: int,
        G: int,
        *,
        memory: int,
        triadic: tuple[float, float],
        coupled: bool,
        field: float = 0.3,
        shortest: float = 2.0,
    ):
        own = {"memory": memory, "coupled": coupled, "field": field, "shortest": shortest}
        super().__init__(key, D, G, kappa=1.0, leaf="kick", **own)
        self.self_coupling = mx.broadcast_to(mx.array(triadic)[:, None], (2, G))

    def _steps(self, h: Planar, dt: mx.array, resets: mx.array | None, valid: mx.array | None):
        turn, rates = self._turn(dt), self._rates()
        kept = None if resets is None else (1 - resets.astype(mx.float32))[..., None]

        def steps(start: int, stop: int, z: Planar | None) -> Planar:
            z, states = Planar.zeros((h.shape[0], h.shape[2])) if z is None else z, []
            for t in range(start, stop):
                w, field = (x.map(lambda a, t=t: a[:, t]) for x in (turn, h))
                w = w * (z if kept is None else z * kept[:, t])
                moved = token_map(w, field, dt[:, t], *rates)
                z = moved if valid is None else select_plane(valid[:, t, None], moved, z)
                states.append(z)
            return Planar(mx.stack([s.re for s in states], 1), mx.stack([s.im for s in states], 1))

        return steps

    def _rates(self) -> tuple[mx.array, mx.array, mx.array]:
        """gamma, K1, K2. Shapes: [G] each."""
        gamma = mx.exp(self.log_gamma)
        return self.gamma, self.self_coupling[0] * gamma, self.self_coupling[1] * gamma

    def _turn(self, dt: mx.array) -> Planar:
        sine, cosine = sincos(self.omega * dt)
        return Planar(cosine, sine)

    def lyapunov(
        self, z: Planar, z0: Planar | None, h: Planar, dt: mx.array, resets: mx.array | None = None
    ) -> mx.array:
        """ln |det dz_t / dz_{t-1}| / 2, the mean over directions, which are not alike here.

        Shapes: as in `Populations`.
        """
        before, turn = state_before(z, z0, resets), self._turn(dt)

        def step_pair(re: mx.array, im: mx.array) -> tuple[mx.array, mx.array]:
            moved = token_map(turn * Planar(re, im), h, dt, *self._rates())
            return moved.re, moved.im

        one, none = mx.ones_like(before.re), mx.zeros_like(before.re)
        _, (a, c) = mx.jvp(step_pair, [before.re, before.im], [one, none])
        _, (b, d) = mx.jvp(step_pair, [before.re, before.im], [none, one])
        return 0.5 * mx.log(mx.maximum(mx.abs(a * d - b * c), 1e-37))


def token_map(w: Planar, h: Planar, dt: mx.array, gamma: mx.array, K1: mx.array, K2: mx.array) -> Planar:
    """What a token makes of the turned state w: the flow of `mobius.hold_leaf` in the field that w gives.

    The exponent of that leaf is real here, s^2 = (gamma / 2)^2 + |H|^2.
    Shapes: w, h, dt [..., G]; gamma, K1, K2 [G].
    """
    H = h + w * ((K1 + K2 * w.abs2) / 2)
    s = mx.sqrt(gamma * gamma / 4 + H.abs2)
    gone = -mx.expm1(-2 * s * dt)
    D = 2 - gone + gamma / 2 * gone / s
    reach = H * (gone / (s * D))
    return reach + w * (4 * (1 - gone) / (D * D)) / (reach.conj * w + 1)
