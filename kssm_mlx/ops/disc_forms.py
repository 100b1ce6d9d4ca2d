"""The kinds of step that `mobius_scan` runs over time: kick, affine, and any map of the disc.

A form is how a step moves z, which map of the disc it is, and its adjoint. Complex numbers are `Planar`;
a step's parameters are a flat tuple of real arrays [..., G], re and im after each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from kssm_mlx.oscillators.mobius import Disc, act
from kssm_mlx.oscillators.planar import Planar

Arrays = tuple[mx.array, ...]


class Form(NamedTuple):
    """One kind of step.

    step(p, z) -> z. disc(p) -> Disc. adjoint(p, z_prev, z, g) -> the gradients of Re(conj(g) z) in the order
    of p. identity: the values that make a step do nothing, for padding. The last `constants` parameters are
    scalars shared by all tokens and lanes: a scalar keeps the fused kernels contiguous, which an array
    broadcast over lanes does not (3x slower).
    """

    step: Callable[[Arrays, Planar], Planar]
    disc: Callable[[Arrays], Disc]
    adjoint: Callable[[Arrays, Planar, Planar, Planar], Arrays]
    identity: tuple[float, ...]
    constants: int = 0

    def split(self, p: Arrays) -> tuple[Arrays, Arrays]:
        """(what varies over tokens, the constants)."""
        n = len(p) - self.constants
        return p[:n], p[n:]


# z -> (a z + k) / (1 + kappa conj(k) a z); p = a, k, kappa


def _kick_step(p: Arrays, z: Planar) -> Planar:
    a, k, kappa = Planar(*p[0:2]), Planar(*p[2:4]), p[4]
    w = a * z
    return (w + k) / (1 + k.conj * w * kappa)


def _kick_disc(p: Arrays) -> Disc:
    a, k, kappa = Planar(*p[0:2]), Planar(*p[2:4]), p[4]
    return Disc(q=k, r=k.conj * a * kappa, d=a * (1 - kappa * k.abs2))


def _kick_adjoint(p: Arrays, z_prev: Planar, z: Planar, g: Planar) -> Arrays:
    a, k, kappa = Planar(*p[0:2]), Planar(*p[2:4]), p[4]
    w = a * z_prev
    inverse = 1 / (1 + k.conj * w * kappa)
    pull = g.conj * z * w * inverse
    g_k = g * inverse.conj - pull * kappa
    g_a = z_prev.conj * ((inverse * inverse).conj * (1 - kappa * k.abs2) * g)
    g_kappa = -(pull * k.conj).re
    return g_a.re, g_a.im, g_k.re, g_k.im, g_kappa


# z -> a z + k, the kick form at kappa = 0; p = a, k


def _affine_step(p: Arrays, z: Planar) -> Planar:
    return Planar(*p[0:2]) * z + Planar(*p[2:4])


def _affine_disc(p: Arrays) -> Disc:
    a, k = Planar(*p[0:2]), Planar(*p[2:4])
    return Disc(q=k, r=Planar(mx.zeros_like(k.re), mx.zeros_like(k.im)), d=a)


def _affine_adjoint(p: Arrays, z_prev: Planar, z: Planar, g: Planar) -> Arrays:
    g_a = z_prev.conj * g
    return g_a.re, g_a.im, g.re, g.im


# z -> q + d z / (1 + r z); p = q, r, d


def disc_of(p: Arrays) -> Disc:
    return Disc(Planar(*p[0:2]), Planar(*p[2:4]), Planar(*p[4:6]))


def parts_of(m: Disc) -> Arrays:
    return m.q.re, m.q.im, m.r.re, m.r.im, m.d.re, m.d.im


def _disc_adjoint(p: Arrays, z_prev: Planar, z: Planar, g: Planar) -> Arrays:
    m = disc_of(p)
    part = z_prev / (1 + m.r * z_prev)
    g_r = -((m.d * part * part).conj * g)
    return parts_of(Disc(q=g, r=g_r, d=part.conj * g))


KICK = Form(_kick_step, _kick_disc, _kick_adjoint, (1, 0, 0, 0), constants=1)
AFFINE = Form(_affine_step, _affine_disc, _affine_adjoint, (1, 0, 0, 0))
DISC = Form(lambda p, z: act(disc_of(p), z), disc_of, _disc_adjoint, (0, 0, 0, 0, 1, 0))
