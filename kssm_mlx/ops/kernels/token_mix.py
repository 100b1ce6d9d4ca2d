"""The token mix as kernels: all mixes of an input in one pass, and all that they give back in another."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import custom_function
from kssm_mlx.ops import token_mix as compiled
from kssm_mlx.ops.gpu import Kernel, chunks, gradients, marks, streams
from kssm_mlx.ops.proof import Case, normal, valid

FORWARD = Kernel("token_mix_forward", "T D size", "x past mu marks", "y", side="D", constants="C")
BACKWARD = Kernel(
    "token_mix_backward", "T D size", "x past mu marks g_y", "g_x g_past g_mu", side="D", constants="C"
)


def token_mix(x: mx.array, mu: mx.array, past: mx.array, resets: mx.array | None) -> list[mx.array]:
    """Shapes: x [B, T, D]; mu [C, D]; past [B, D]; resets [B, T] -> C of [B, T, D], in the dtype of x."""
    B, T, _ = x.shape
    x_, past = streams(x, past)
    return [y.astype(x.dtype) for y in _mix(x_, past, mu.astype(mx.float32), marks(resets, B, T))]


@custom_function
def _mix(x, past, mu, marks):
    (y,) = FORWARD((x, past, mu, marks), [(len(mu), *x.shape)], lanes=x.size, **_numbers(x, mu))
    return tuple(y)


@_mix.vjp
def _(primals, cotangents, outputs):
    x, past, mu, marks = primals
    B, T, D = x.shape
    shapes = [x.shape, past.shape, (B, chunks(T), *mu.shape)]
    # One mix alone gives its cotangent without a tuple.
    pulls = mx.stack(list(cotangents) if isinstance(cotangents, (tuple, list)) else [cotangents])
    g_x, g_past, g_mu = BACKWARD(
        (x, past, mu, marks, pulls), shapes, lanes=B * chunks(T) * D, **_numbers(x, mu)
    )
    return gradients(primals, (g_x, g_past, g_mu.sum((0, 1)), mx.zeros_like(marks)))


def _numbers(x: mx.array, mu: mx.array) -> dict[str, int]:
    return {"T": x.shape[1], "D": x.shape[2], "size": x.size, "C": len(mu)}


def _arguments(B, T, D, C=3):
    return [normal(0, B, T, D), normal(1, B, D), mx.random.uniform(shape=(C, D), key=mx.random.key(2))]


def _call(op, x, masks):
    mixed, last = op(x[0], x[2], x[1], **masks)
    return [*(valid(y, masks) for y in mixed), last]


CASE = Case(compiled.token_mix, _arguments, 2, _call, variants=tuple({"C": C} for C in (1, 2, 3, 6)))
