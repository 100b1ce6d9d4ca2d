"""Layer norm and RMS norm for Linux CPUs, where MLX puts them together from a dozen passes over memory."""

from __future__ import annotations

import math
from functools import cache

import mlx.core as mx

from kssm_mlx.ops import custom_function
from kssm_mlx.ops import norms as compiled
from kssm_mlx.ops.gpu import Kernel, gradients
from kssm_mlx.ops.proof import Arrays, Case, normal

# Partial sums beside each other; rows that one lane sums gradients over.
WIDE, TALL = 16, 64
# A row is contiguous: its numbers fill the registers, not those of neighbouring rows.
FORWARD = Kernel(
    "norm_forward", "D P centred", "x weight bias eps", "y mean scale", side="1", constants="WIDE"
)
BACKWARD = Kernel("norm_backward", "D P centred", "x weight mean scale c", "g_x", side="1", constants="WIDE")
SHARED = Kernel(
    "norm_shared", "D P rows tall", "x mean scale c", "g_weight g_bias", side="D", apart="mean:0 scale:0"
)


def norms(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, centred: bool) -> mx.array:
    """Shapes as in `ops.norms`; the result is fp32."""
    x = x if x.dtype == mx.bfloat16 else x.astype(mx.float32)
    shape = x.shape[-1:] if weight is None else weight.shape
    weight = mx.ones(shape) if weight is None else weight.astype(mx.float32)
    bias = mx.zeros(shape) if bias is None else bias.astype(mx.float32)
    return _norm(centred)(x, weight, bias, mx.array([eps]))[0]


@cache
def _norm(centred: bool):
    @custom_function
    def norm(x, weight, bias, eps):
        rows = (x.size // x.shape[-1],)
        return tuple(FORWARD((x, weight, bias, eps), [x.shape, rows, rows], WIDE=WIDE, **sizes(x, weight)))

    def sizes(x, weight):
        D = x.shape[-1]
        return {"lanes": x.size // D, "D": D, "P": weight.size // D, "centred": int(centred)}

    @norm.vjp
    def _(primals, cotangents, outputs):
        x, weight, _, eps = primals
        (_, mean, scale), c = outputs, cotangents[0]
        numbers = sizes(x, weight)
        (g_x,) = BACKWARD((x, weight, mean, scale, c), [x.shape], WIDE=WIDE, **numbers)
        rows, D, P = numbers["lanes"], numbers["D"], numbers["P"]
        blocks = math.ceil(rows // P / TALL)
        shared = SHARED(
            (x, mean, scale, c), [(blocks, P, D)] * 2, lanes=blocks * P * D, D=D, P=P, rows=rows, tall=TALL
        )
        g_weight, g_bias = (g.sum(0).reshape(weight.shape) for g in shared)
        return gradients(primals, (g_x, g_weight, g_bias, mx.zeros_like(eps)))

    return norm


def _apply_both(x: mx.array, weight: mx.array, bias: mx.array, *, impl: str = "auto") -> Arrays:
    centred = compiled.layer_norm(x, weight, bias, 1e-5, impl=impl)
    return [centred, compiled.rms_norm(x + 1, weight[0], 1e-5, impl=impl)]


def _arguments(B, T, D):
    return [normal(0, B, T, 3, D), 1 + 0.1 * normal(1, 3, D), normal(2, 3, D)]


CASE = Case(_apply_both, _arguments, 1, lambda op, x, masks: op(*x), masked=False)
