"""`ops.ball_wells` as a GPU kernel: one lane per population, M wells each, known when it is compiled."""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from kssm_mlx.ops import ball_wells as compiled
from kssm_mlx.ops import custom_function
from kssm_mlx.ops.ball_scan import kick, rotor
from kssm_mlx.ops.gpu import Kernel, gradients, streams
from kssm_mlx.ops.proof import Case, normal

INPUTS = "a0 rotors kicks pull points sharpness kappa"
FORWARD = Kernel(
    "ball_wells_forward",
    sizes="T G",
    inputs=INPUTS,
    outputs="a",
    side="G",
    apart="kappa:0",
    constants="M",
    slab=16,
)
BACKWARD = Kernel(
    "ball_wells_backward",
    sizes="T G",
    inputs=f"{INPUTS} a c",
    outputs="g_a0 g_rotors g_kicks g_pull g_points g_sharpness g_kappa",
    side="G",
    apart="kappa:0",
    constants="M",
    slab=16,
    backwards=True,
)


def ball_wells(rotors, kicks, pull, points, sharpness, a0, kappa, *, wells: int) -> mx.array:
    """Shapes as in `ops.ball_wells`; wells: M."""
    B, _, _, G = kicks.shape
    a0 = mx.zeros((B, 3, G)) if a0 is None else a0
    fixed = (x.astype(mx.float32) for x in (points, sharpness))
    moving = streams(rotors, kicks, pull)
    return _scan(wells)(a0.astype(mx.float32), *moving, *fixed, mx.array(kappa, mx.float32).reshape(1))


@cache
def _scan(M: int):
    @custom_function
    def scan(*primals):
        B, T, _, G = primals[1].shape
        (a,) = FORWARD(primals, [(B, T, 3, G)], lanes=B * G, T=T, G=G, M=M)
        return a

    @scan.vjp
    def _(primals, cotangent, a):
        B, T, _, G = primals[1].shape
        moving = [(B, T, 4, G), (B, T, 3, G), (B, T, G)]
        shapes = [(B, 3, G), *moving, (B, M, 3, G), (B, G), (B, G)]
        *found, points, sharpness, kappa = BACKWARD(
            (*primals, a, cotangent), shapes, lanes=B * G, T=T, G=G, M=M
        )
        return gradients(primals, (*found, points.sum(0), sharpness.sum(0), kappa.sum().reshape(1)))

    return scan


def _arguments(B, T, G, wells=8):
    rotors = rotor(0.05 + mx.abs(normal(0, B, T, G)) / 9, normal(1, B, T, 3, G))
    points = normal(4, wells, 3, G)
    points = 0.9 * points / mx.linalg.norm(points, axis=1, keepdims=True)
    pull = 0.3 * mx.sigmoid(normal(5, B, T, G))
    moving = [rotors, kick(normal(2, B, T, 3, G), 0.7), pull]
    return [*moving, points, 4 + normal(6, G), 0.4 * mx.tanh(normal(3, B, 3, G)), mx.array(0.7)]


def _call(op, x, masks):
    return [op(*x)]


CASE = Case(
    compiled.ball_wells,
    _arguments,
    3,
    _call,
    compiled.ball_wells_reference,
    masked=False,
    variants=({"wells": 6}, {"wells": 8}, {"wells": 12}),
)
