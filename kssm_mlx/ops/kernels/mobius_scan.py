"""The kick form of `ops.mobius_scan` as a GPU kernel: every state is an output, so nothing is recomputed."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import custom_function
from kssm_mlx.ops import mobius_scan as compiled
from kssm_mlx.ops.gpu import Kernel, gradients, streams
from kssm_mlx.ops.kernels import in_time
from kssm_mlx.ops.proof import IN_PARTS, SIZES, Case, normal
from kssm_mlx.oscillators.mobius import Disc, act
from kssm_mlx.oscillators.planar import Planar

# Complex numbers and four arrays of them: a longer chunk would not fit in registers.
CHUNK = 8

FORWARD = Kernel(
    "mobius_scan_forward",
    sizes="T G",
    inputs="z0_re z0_im a_re a_im k_re k_im kappa",
    outputs="z_re z_im",
    side="G",
    apart="kappa:0",
    chunk=CHUNK,
    slab=CHUNK,
)
COMPOSE = Kernel(
    "mobius_scan_compose",
    sizes="T G",
    inputs="a_re a_im k_re k_im kappa",
    outputs="q_re q_im r_re r_im d_re d_im",
    side="G",
    apart="kappa:0",
)
BACKWARD = Kernel(
    "mobius_scan_backward",
    sizes="T G",
    inputs=f"{FORWARD.inputs} {FORWARD.outputs} c_re c_im",
    outputs="g_z0_re g_z0_im g_a_re g_a_im g_k_re g_k_im g_kappa",
    side="G",
    apart="kappa:0",
    chunk=CHUNK,
    slab=CHUNK,
    backwards=True,
)


def mobius_scan(a: Planar, k: Planar, z0: Planar | None, kappa: float | mx.array) -> Planar:
    """Shapes as in `ops.mobius_scan`."""
    B, _, G = k.shape
    z0 = Planar.zeros((B, G)) if z0 is None else z0.map(lambda x: x.astype(mx.float32))
    kappa = mx.array(kappa, mx.float32).reshape(1)
    return Planar(*_scan(z0.re, z0.im, *streams(a.re, a.im, k.re, k.im), kappa))


@custom_function
def _scan(*primals):
    B, T, G = primals[2].shape
    n = in_time.parts(T, B * G)
    return _states(*primals) if n == 1 else _states_in_parts(n, *primals)


def _states(*primals) -> tuple[mx.array, ...]:
    B, T, G = primals[2].shape
    return tuple(FORWARD(primals, [(B, T, G)] * 2, lanes=B * G, T=T, G=G))


def _states_in_parts(n: int, z0_re, z0_im, *moving) -> tuple[mx.array, ...]:
    *moving, kappa = moving
    T = moving[0].shape[1]
    moving = [in_time.cut(x, n, fill) for x, fill in zip(moving, (1, 0, 0, 0), strict=True)]
    B, L, G = moving[0].shape
    composed = COMPOSE((*moving, kappa), [(B, G)] * 6, lanes=B * G, T=L, G=G)
    z, entering = Planar(z0_re, z0_im), []
    for q_re, q_im, r_re, r_im, d_re, d_im in zip(*(in_time.rows(x, n) for x in composed)):
        entering.append(z)
        z = act(Disc(Planar(q_re, q_im), Planar(r_re, r_im), Planar(d_re, d_im)), z)
    starts = (in_time.batch(side) for side in zip(*((s.re, s.im) for s in entering)))
    return tuple(in_time.join(x, n, T) for x in _states(*starts, *moving, kappa))


@_scan.vjp
def _(primals, cotangents, outputs):
    B, T, G = primals[2].shape
    shapes = [(B, G)] * 2 + [(B, T, G)] * 4 + [(B, G)]
    *found, kappa = BACKWARD((*primals, *outputs, *cotangents), shapes, lanes=B * G, T=T, G=G)
    return gradients(primals, (*found, kappa.sum().reshape(1)))


def _arguments(B, T, G):
    a = compiled.flow(0.05 + mx.abs(normal(0, B, T, G)) / 9, normal(1, B, T, G))
    k = compiled.kick(Planar(normal(2, B, T, G), normal(3, B, T, G)), 0.7)
    start = [0.5 * mx.tanh(normal(i, B, G)) for i in (4, 5)]
    return [a.re, a.im, k.re, k.im, *start, mx.array(0.7)]


def _call(op, x, masks):
    z = op(Planar(x[0], x[1]), Planar(x[2], x[3]), Planar(x[4], x[5]), x[6])
    return [z.re, z.im]


CASE = Case(
    compiled.mobius_scan,
    _arguments,
    4,
    _call,
    compiled.mobius_scan_reference,
    masked=False,
    sizes=(*SIZES, IN_PARTS),
)
