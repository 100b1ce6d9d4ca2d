"""`ops.ball_scan.rotor` as kernels: one lane per rotation, everything in one pass over memory."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import ball_scan as compiled
from kssm_mlx.ops import custom_function
from kssm_mlx.ops.gpu import Kernel, gradients
from kssm_mlx.ops.proof import Case, normal

FORWARD = Kernel("rotor_forward", sizes="G", inputs="w rest", outputs="p", side="G")
BACKWARD = Kernel("rotor_backward", sizes="G", inputs="w rest p c", outputs="g_w g_rest", side="G")


def rotor(rest: mx.array, w: mx.array) -> mx.array:
    """Shapes as in `ops.ball_scan.rotor`; rest = gamma tau, at least 1e-6."""
    *outer, _, G = w.shape
    flat = _rotor(w.astype(mx.float32).reshape(-1, 3, G), rest.astype(mx.float32).reshape(-1, G))
    return flat.reshape(*outer, 4, G)


@custom_function
def _rotor(w, rest):
    N, _, G = w.shape
    (p,) = FORWARD((w, rest), [(N, 4, G)], lanes=N * G, G=G)
    return p


@_rotor.vjp
def _(primals, cotangent, p):
    N, _, G = primals[0].shape
    found = BACKWARD((*primals, p, cotangent), [(N, 3, G), (N, G)], lanes=N * G, G=G)
    return gradients(primals, found)


def _arguments(B, T, G):
    # Angles on both sides of where the series ends, 0 among them.
    w = mx.where(normal(2, B, T, 1, G) > 0, 2.0, 0.1) * normal(1, B, T, 3, G)
    return [0.05 + mx.abs(normal(0, B, T, G)) / 9, mx.where(normal(3, B, T, 1, G) > 1.5, 0.0, w)]


def _call(op, x, masks):
    return [op(*x)]


CASE = Case(compiled.rotor, _arguments, 0, _call, masked=False)
