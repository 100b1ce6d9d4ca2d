"""The kick form of `ops.ball_scan` as a GPU kernel: every state is an output, so nothing is recomputed."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import ball_scan as compiled
from kssm_mlx.ops import custom_function
from kssm_mlx.ops.gpu import Kernel, gradients, streams
from kssm_mlx.ops.kernels import in_time
from kssm_mlx.ops.maps.ball import MAP
from kssm_mlx.ops.proof import IN_PARTS, SIZES, Case, normal

# Seven numbers of a token are read at once forwards and thirteen backwards, beside what is computed of them:
# longer chunks do not fit in 32 registers (by hand, AVX-512: forwards 8 took .9 of the time of 4 or 16,
# backwards 3 that of 4).
CHUNK, CHUNK_BACK = 8, 3

FORWARD = Kernel(
    "ball_scan_forward",
    sizes="T G",
    inputs="a0 rotors kicks kappa",
    outputs="a",
    side="G",
    apart="kappa:0",
    chunk=CHUNK,
    slab=CHUNK,
)
COMPOSE = Kernel(
    "ball_scan_compose",
    sizes="T G",
    inputs="rotors kicks kappa",
    outputs="map",
    side="G",
    apart="kappa:0",
)
BACKWARD = Kernel(
    "ball_scan_backward",
    sizes="T G",
    inputs="a0 rotors kicks kappa a c",
    outputs="g_a0 g_rotors g_kicks g_kappa",
    side="G",
    apart="kappa:0",
    chunk=CHUNK_BACK,
    slab=CHUNK_BACK,
    backwards=True,
)


def ball_scan(rotors: mx.array, kicks: mx.array, a0: mx.array | None, kappa: float | mx.array) -> mx.array:
    """Shapes as in `ops.ball_scan`."""
    B, _, _, G = kicks.shape
    a0 = mx.zeros((B, 3, G)) if a0 is None else a0.astype(mx.float32)
    return _scan(a0, *streams(rotors, kicks), mx.array(kappa, mx.float32).reshape(1))


@custom_function
def _scan(*primals):
    B, T, _, G = primals[1].shape
    n = in_time.parts(T, B * G)
    return _states(*primals) if n == 1 else _states_in_parts(n, *primals)


def _states(*primals) -> mx.array:
    B, T, _, G = primals[1].shape
    (a,) = FORWARD(primals, [(B, T, 3, G)], lanes=B * G, T=T, G=G)
    return a


def _states_in_parts(n: int, a0, rotors, kicks, kappa) -> mx.array:
    T = kicks.shape[1]
    rotors, kicks = _cut_rotors(rotors, n), in_time.cut(kicks, n)
    B, L, _, G = kicks.shape
    (maps,) = COMPOSE((rotors, kicks, kappa), [(B, 10, G)], lanes=B * G, T=L, G=G)
    a, entering = a0, []
    for whole in in_time.rows(maps, n):
        entering.append(a)
        a = mx.stack(list(MAP.step(_components(whole), _components(a))), 1)
    return in_time.join(_states(in_time.batch(entering), rotors, kicks, kappa), n, T)


def _cut_rotors(rotors: mx.array, n: int) -> mx.array:
    """The padding turns nothing: (1, 0, 0, 0)."""
    level, axis = mx.split(rotors, [1], axis=2)
    return mx.concatenate([in_time.cut(level, n, 1), in_time.cut(axis, n)], axis=2)


def _components(x: mx.array) -> tuple[mx.array, ...]:
    return tuple(x[:, i] for i in range(x.shape[1]))


@_scan.vjp
def _(primals, cotangent, a):
    B, T, _, G = primals[1].shape
    shapes = [(B, 3, G), (B, T, 4, G), (B, T, 3, G), (B, G)]
    *found, kappa = BACKWARD((*primals, a, cotangent), shapes, lanes=B * G, T=T, G=G)
    return gradients(primals, (*found, kappa.sum().reshape(1)))


def _arguments(B, T, G):
    rotors = compiled.rotor(0.05 + mx.abs(normal(0, B, T, G)) / 9, normal(1, B, T, 3, G))
    kicks = compiled.kick(normal(2, B, T, 3, G), 0.7)
    return [rotors, kicks, 0.4 * mx.tanh(normal(3, B, 3, G)), mx.array(0.7)]


def _call(op, x, masks):
    return [op(*x)]


CASE = Case(
    compiled.ball_scan,
    _arguments,
    2,
    _call,
    compiled.ball_scan_reference,
    masked=False,
    sizes=(*SIZES, IN_PARTS),
)
