"""RWKV-4's WKV as GPU kernels: one lane per channel, states kept every CHUNK tokens."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops.gpu import PADDING, Kernel, chunks, gradients, marks, streams
from kssm_mlx.ops.scan import begins, float32, inside
from kssm_mlx.ops.wkv4 import WKV4State, empty_state

FORWARD = Kernel("wkv4_forward", "T C", "num0 den0 max0 w u k v marks", "y num1 den1 max1 saved", "C")
BACKWARD = Kernel(
    "wkv4_backward",
    "T C",
    "w u k v marks y saved c c_num c_den",
    "g_num0 g_den0 g_max0 g_w g_u g_k g_v",
    side="C",
)


def wkv4(w, u, k, v, state=None, *, resets=None, lengths=None) -> tuple[mx.array, WKV4State]:
    """Shapes as in `ops.wkv4`."""
    B, T, C = k.shape
    state = empty_state(B, C) if state is None else state
    told = marks(None if resets is None else begins(resets, lengths), B, T)
    if lengths is not None:
        told = mx.where(inside(lengths, T), told, PADDING)
    y, *state, _ = _scan(*float32(*state, w, u), *streams(k, v), told)
    return y, WKV4State(*state)


@mx.custom_function
def _scan(*primals):
    B, T, C = primals[5].shape
    shapes = [(B, T, C)] + [(B, C)] * 3 + [(B, chunks(T), 3, C)]
    return tuple(FORWARD(primals, shapes, lanes=B * C, T=T, C=C))


@_scan.vjp
def _(primals, cotangents, outputs):
    B, T, C = primals[5].shape
    y, *_, saved = outputs
    c, c_num, c_den, *_ = cotangents
    shapes = [(B, C)] * 5 + [(B, T, C)] * 2
    known = (*primals[3:], y, saved, c, c_num, c_den)
    *state, w, u, k, v = BACKWARD(known, shapes, lanes=B * C, T=T, C=C)
    return gradients(primals, (*state, w.sum(0), u.sum(0), k, v, mx.zeros_like(primals[7])))
