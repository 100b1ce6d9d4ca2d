"""RWKV-7's WKV as kernels: a lane holds one row of a head's state, and the backward pass runs it once more.

A state every CHUNK tokens is K V / CHUNK numbers a token and head, more than is read: kept from the forward
pass, it would cost prefill more than running twice costs training. The rows meet only in sums over V, which
would need an exchange between threads. Instead the adjoint kernel keeps what couples the columns (one number
per row and token), and a second kernel walks the columns.
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import wkv7 as compiled
from kssm_mlx.ops.elementary import exp
from kssm_mlx.ops.gpu import Kernel, chunks, gradients, marks, streams
from kssm_mlx.ops.proof import Case, normal, valid
from kssm_mlx.ops.scan import begins, inside

SHARED = "r:0 w:0 k:0 a:0 b:0"
ARGUMENTS = "S0 r w k v a b marks"
FORWARD = Kernel("wkv7_forward", "T H V", ARGUMENTS, "y S1", "V", SHARED, "K KEEP")
KEEPING = Kernel("wkv7_forward", "T H V", ARGUMENTS, "y S1 saved u", "V", SHARED, "K KEEP")
ADJOINT = Kernel("wkv7_adjoint", "T H V", "r w k a b marks c c_S1", "g_S0 entering g_v q", "V", SHARED, "K")
COLUMNS = Kernel(
    "wkv7_columns",
    "T H V",
    "r w k v a b marks saved entering u q c",
    "g_r g_w g_k g_a g_b",
    side="K",
    apart="v:0 u:0 q:0 c:0 saved:V entering:V",
    constants="K",
)


def wkv7(r, log_w, k, v, a, b, state=None, *, resets=None, lengths=None) -> tuple[mx.array, mx.array]:
    """Shapes as in `ops.wkv7`."""
    (B, T, H, K), V = r.shape, v.shape[-1]
    if lengths is not None:
        valid = inside(lengths, T)[..., None, None]
        log_w, k, b = (mx.where(valid, x, 0) for x in (log_w, k, b))
    if resets is not None:
        resets = begins(resets, lengths)
    S0 = mx.zeros((B, H, K, V)) if state is None else state.astype(mx.float32).swapaxes(2, 3)
    r, k, v, a, b = streams(r, k, v, a, b)
    y, S = _scan(S0, r, exp(log_w.astype(mx.float32)), k, v, a, b, marks(resets, B, T))
    return y, S.swapaxes(2, 3)


@mx.custom_function
def _scan(*primals):
    return tuple(_run(FORWARD, primals))


def _run(kernel: Kernel, primals) -> list[mx.array]:
    """y, the last state, and of KEEPING the states before each chunk and u."""
    S0, v = primals[0], primals[4]
    (B, T, H, V), K, keep = v.shape, S0.shape[2], kernel is KEEPING
    shapes = [v.shape, S0.shape, *([(B, chunks(T), H, K, V), v.shape] if keep else [])]
    return kernel(primals, shapes, lanes=B * H * V, T=T, H=H, V=V, K=K, KEEP=int(keep))


@_scan.vjp
def _(primals, cotangents, outputs):
    S0, r, w, k, v, a, b, marks = primals
    (B, T, H, V), K = v.shape, S0.shape[2]
    c, c_S1 = cotangents
    _, _, saved, u = _run(KEEPING, primals)
    numbers = {"T": T, "H": H, "V": V, "K": K}
    shapes = [S0.shape, saved.shape, v.shape, v.shape]
    g_S0, entering, g_v, q = ADJOINT((r, w, k, a, b, marks, c, c_S1), shapes, lanes=B * H * V, **numbers)
    known = (r, w, k, v, a, b, marks, saved, entering, u, q, c)
    g_r, g_w, g_k, g_a, g_b = COLUMNS(known, [r.shape] * 5, lanes=B * chunks(T) * H * K, **numbers)
    return gradients(primals, (g_S0, g_r, g_w, g_k, g_v, g_a, g_b, mx.zeros_like(marks)))


def _arguments(B, T, V, H=2, K=4):
    r, k, b = (normal(i, B, T, H, K) for i in range(3))
    a, v = -b / 9, normal(3, B, T, H, V)
    return [r, k, a, b / 9, v, -0.6 * mx.sigmoid(normal(4, B, T, H, K)), normal(5, B, H, V, K)]


def _call(op, x, masks):
    r, k, a, b, v, log_w, S = x
    y, S = op(r, log_w, k, v, a, b, S, **masks)
    return [valid(y, masks), S]


# Of the recipes, of the small presets, and of the published models.
HEADS = ({"K": 16}, {"K": 32}, {"K": 64})
CASE = Case(compiled.wkv7, _arguments, 5, _call, compiled.wkv7_reference, variants=HEADS)
