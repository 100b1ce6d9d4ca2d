"""The depthwise causal convolution as GPU kernels."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import conv as compiled
from kssm_mlx.ops import custom_function
from kssm_mlx.ops.gpu import Kernel, chunks, gradients, marks, streams
from kssm_mlx.ops.proof import Case, normal, valid

FORWARD = Kernel("conv_forward", "T D", "x past weight bias marks", "y", "D", "weight:W", "W")
BACKWARD = Kernel("conv_backward", "T D", "x past weight marks c", "g_padded g_weight", "D", "weight:W", "W")


def conv(x, weight, bias, past, resets) -> mx.array:
    """The outputs of `ops.conv.causal_conv`, summed in fp32 whatever the inputs are; W >= 2.

    Shapes: x and the result [B, T, D]; weight [D, W]; bias [D]; past [B, W - 1, D]; resets [B, T].
    """
    B, T, D = x.shape
    bias = mx.zeros((D,)) if bias is None else bias.astype(mx.float32)
    y = _conv(*streams(x, past), weight.astype(mx.float32), bias, marks(resets, B, T))[0]
    return y.astype(x.dtype)


@custom_function
def _conv(x, past, weight, bias, marks):
    _, T, D = x.shape
    numbers = {"T": T, "D": D, "W": weight.shape[1]}
    return tuple(FORWARD((x, past, weight, bias, marks), [x.shape], lanes=x.size, **numbers))


@_conv.vjp
def _(primals, cotangents, outputs):
    x, past, weight, _, marks = primals
    c = cotangents[0]
    (B, T, D), W = x.shape, weight.shape[1]
    length = W - 1 + T
    shapes = [(B, length, D), (B, chunks(length), W, D)]
    lanes = B * chunks(length) * D
    padded, taps = BACKWARD((x, past, weight, marks, c), shapes, lanes=lanes, T=T, D=D, W=W)
    found = (padded[:, W - 1 :], padded[:, : W - 1], taps.sum((0, 1)).T, c.sum((0, 1)))
    return gradients(primals, (*found, mx.zeros_like(marks)))


def _arguments(B, T, D, W=4):
    return [normal(0, B, T, D), normal(1, B, W - 1, D), normal(2, D, W), normal(3, D)]


def _call(op, x, masks):
    y, past = op(x[0], x[2], x[3], x[1], **masks)
    return [valid(y, masks), past]


CASE = Case(compiled.causal_conv, _arguments, 2, _call)
