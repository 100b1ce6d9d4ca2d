"""The kinds of step that `mobius_scan` runs over time: kick, affine, and any map of the disc.

Complex numbers are `Planar`; states and a step's parameters are flat tuples of real arrays [..., G], re and
im after each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from kssm_mlx.ops.maps.scan import Arrays, Form
from kssm_mlx.oscillators.mobius import Disc, act, compose
from kssm_mlx.oscillators.planar import Planar

Adjoint = Callable[[Arrays, Planar, Planar, Planar], Arrays]


class DiscForm(NamedTuple):
    """A kind of step as the scan has it, and what its gradients follow from.

    disc(p) -> Disc. adjoint(p, z_prev, z, g) -> the gradients of Re(conj(g) z) in the order of p.
    """

    form: Form
    disc: Callable[[Arrays], Disc]
    adjoint: Adjoint


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


def _make_form(
    step: Callable[[Arrays, Planar], Planar],
    disc: Callable[[Arrays], Disc],
    adjoint: Adjoint,
    identity: tuple[float, ...],
    constants: int = 0,
    general: Form | None = None,
) -> DiscForm:
    def flat(p: Arrays, z: Arrays) -> Arrays:
        moved = step(p, Planar(*z))
        return moved.re, moved.im

    def after(late: Arrays, early: Arrays) -> Arrays:
        return parts_of(compose(disc_of(late), disc_of(early)))

    composed = after if general is None else None
    form = Form(flat, lambda p: parts_of(disc(p)), identity, general, composed, constants)
    return DiscForm(form, disc, adjoint)


DISC = _make_form(lambda p, z: act(disc_of(p), z), disc_of, _disc_adjoint, (0, 0, 0, 0, 1, 0))
KICK = _make_form(_kick_step, _kick_disc, _kick_adjoint, (1, 0, 0, 0), constants=1, general=DISC.form)
AFFINE = _make_form(_affine_step, _affine_disc, _affine_adjoint, (1, 0, 0, 0), general=DISC.form)
