"""RWKV-4's WKV as GPU kernels: one lane per channel, states kept every CHUNK tokens."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import custom_function
from kssm_mlx.ops import wkv4 as compiled
from kssm_mlx.ops.gpu import BEGINS, CHUNK, PADDING, Kernel, chunks, gradients, marks, streams
from kssm_mlx.ops.kernels import in_time
from kssm_mlx.ops.proof import IN_PARTS, SIZES, Case, normal, valid
from kssm_mlx.ops.scan import float32, mask_resets, mask_tokens
from kssm_mlx.ops.wkv4 import EMPTY, WKV4State, empty_state

FORWARD = Kernel(
    "wkv4_forward", "T C", "num0 den0 max0 w u k v marks", "y num1 den1 max1 saved", side="C", slab=CHUNK
)
BACKWARD = Kernel(
    "wkv4_backward",
    "T C",
    "w u k v marks y saved c c_num c_den",
    "g_num0 g_den0 g_max0 g_w g_u g_k g_v",
    side="C",
    slab=CHUNK,
    backwards=True,
)


def wkv4(w, u, k, v, state=None, *, resets=None, lengths=None) -> tuple[mx.array, WKV4State]:
    """Shapes as in `ops.wkv4`."""
    B, T, C = k.shape
    state = empty_state(B, C) if state is None else state
    told = marks(None if resets is None else mask_resets(resets, lengths), B, T)
    if lengths is not None:
        told = mx.where(mask_tokens(lengths, T), told, PADDING)
    y, *state, _ = _scan(*float32(*state, w, u), *streams(k, v), told)
    return y, WKV4State(*state)


@custom_function
def _scan(*primals):
    B, T, C = primals[5].shape
    n = in_time.parts(T, B * C)
    return _states(*primals) if n == 1 else _states_in_parts(n, *primals)


def _states(*primals) -> tuple[mx.array, ...]:
    B, T, C = primals[5].shape
    shapes = [(B, T, C)] + [(B, C)] * 3 + [(B, chunks(T), 3, C)]
    return tuple(FORWARD(primals, shapes, lanes=B * C, T=T, C=C))


def _states_in_parts(n: int, num, den, most, w, u, k, v, told) -> tuple[mx.array, ...]:
    """A part fades the sums by w a token, unless a document begins in it, and adds its own."""
    T = k.shape[1]
    k, v, told = in_time.cut(k, n), in_time.cut(v, n), in_time.cut(told, n, PADDING)
    own = _states(*empty_state(k.shape[0], k.shape[2]), w, u, k, v, told)[1:4]
    fade = (told != PADDING).sum(axis=1)[:, None] * w
    fade = mx.where((told == BEGINS).any(axis=1)[:, None], EMPTY, fade)
    s, entering = WKV4State(num, den, most), []
    for faded, *end in zip(*(in_time.rows(x, n) for x in (fade, *own))):
        entering.append(s)
        s = _sum(_fade_state(s, faded), WKV4State(*end))
    starts = (in_time.batch(part) for part in zip(*entering))
    y, *_, saved = _states(*starts, w, u, k, v, told)
    return in_time.join(y, n, T), *s, in_time.join(saved, n, chunks(T))


def _fade_state(s: WKV4State, fade: mx.array) -> WKV4State:
    """s times exp(fade); what the maximum's last digit cannot hold of it goes into the sums."""
    most = mx.maximum(s.max + fade, EMPTY)
    rest = mx.exp(fade - (most - s.max))
    return WKV4State(rest * s.num, rest * s.den, most)


def _sum(x: WKV4State, y: WKV4State) -> WKV4State:
    most = mx.maximum(x.max, y.max)
    of_x, of_y = mx.exp(x.max - most), mx.exp(y.max - most)
    return WKV4State(of_x * x.num + of_y * y.num, of_x * x.den + of_y * y.den, most)


@_scan.vjp
def _(primals, cotangents, outputs):
    B, T, C = primals[5].shape
    y, *_, saved = outputs
    c, c_num, c_den, *_ = cotangents
    shapes = [(B, C)] * 5 + [(B, T, C)] * 2
    known = (*primals[3:], y, saved, c, c_num, c_den)
    *state, w, u, k, v = BACKWARD(known, shapes, lanes=B * C, T=T, C=C)
    return gradients(primals, (*state, w.sum(0), u.sum(0), k, v, mx.zeros_like(primals[7])))


def _arguments(B, T, C):
    state = [normal(4, B, C), mx.abs(normal(5, B, C)) + 0.1, normal(6, B, C)]
    return [2 * normal(0, B, T, C), normal(1, B, T, C), -mx.abs(normal(2, C)), normal(3, C), *state]


def _call(op, x, masks):
    y, s = op(x[2], x[3], x[0], x[1], WKV4State(*x[4:]), **masks)
    return [valid(y, masks), s.num * mx.exp(s.max), s.den * mx.exp(s.max)]


CASE = Case(compiled.wkv4, _arguments, 2, _call, compiled.wkv4_reference, sizes=(*SIZES, IN_PARTS))
