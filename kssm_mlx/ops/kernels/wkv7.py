"""RWKV-7's WKV as kernels: lanes hold the rows of a head's state, and the backward pass runs it once more.

On a GPU a row may be shared by several lanes (`share`), which add up what each has of it: more lanes with
fewer registers each, and states that are read in their own order. How many are best depends on the device,
which is asked (`Case.ways`). mlx-lm's RWKV-7 has 32 lanes a row.

A state every CHUNK tokens is K V / CHUNK numbers a token and head, more than is read: kept from the forward
pass, it would cost prefill more than running twice costs training. The rows meet only in sums over V, which
would need an exchange between threads. Instead the adjoint kernel keeps what couples the columns (one number
per row and token), and a second kernel walks the columns.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from kssm_mlx.ops import custom_function
from kssm_mlx.ops import wkv7 as compiled
from kssm_mlx.ops.elementary import exp
from kssm_mlx.ops.gpu import Kernel, chunks, gradients, marks, streams
from kssm_mlx.ops.proof import Case, normal, valid
from kssm_mlx.ops.scan import mask_resets, mask_tokens

SHARED = "r:0 w:0 k:0 a:0 b:0"
ARGUMENTS = "S0 r w k v a b marks"
FORWARD = Kernel("wkv7_forward", "T H V", ARGUMENTS, "y S1", "V", SHARED, "K KEEP SHARE")
KEEPING = Kernel("wkv7_forward", "T H V", ARGUMENTS, "y S1 saved u", "V", SHARED, "K KEEP SHARE")
ADJOINT = Kernel(
    "wkv7_adjoint", "T H V", "r w k a b marks c c_S1", "g_S0 entering g_v q", "V", SHARED, "K SHARE"
)
COLUMNS = Kernel(
    "wkv7_columns",
    "T H V",
    "r w k v a b marks saved entering u q c",
    "g_r g_w g_k g_a g_b",
    side="K",
    apart="v:0 u:0 q:0 c:0 saved:V entering:V",
    constants="K SHARE",
)


def wkv7(
    r, log_w, k, v, a, b, state=None, *, resets=None, lengths=None, share: int = 1
) -> tuple[mx.array, mx.array]:
    """Shapes as in `ops.wkv7`; share: lanes of a row, a divisor of K."""
    (B, T, H, K), V = r.shape, v.shape[-1]
    if lengths is not None:
        valid = mask_tokens(lengths, T)[..., None, None]
        log_w, k, b = (mx.where(valid, x, 0) for x in (log_w, k, b))
    if resets is not None:
        resets = mask_resets(resets, lengths)
    S0 = _reorder_state(mx.zeros((B, H, V, K)) if state is None else state.astype(mx.float32), share)
    r, k, v, a, b = streams(r, k, v, a, b)
    y, S = _scan(share)(S0, r, exp(log_w.astype(mx.float32)), k, v, a, b, marks(resets, B, T))
    return y, _reorder_state(S, share)


def _reorder_state(S: mx.array, share: int) -> mx.array:
    """A state between its own order, [B, H, V, K], and that of lanes which hold whole rows side by side."""
    return S.swapaxes(2, 3) if share == 1 else S


@cache
def _scan(share: int):
    """The differentiable scan by `share` lanes a row."""

    @custom_function
    def scan(*primals):
        return tuple(_run(FORWARD, primals, share))

    @scan.vjp
    def _(primals, cotangents, outputs):
        return _gradients(primals, cotangents, share)

    return scan


def _numbers(r: mx.array, v: mx.array, share: int) -> dict[str, int]:
    return {"T": v.shape[1], "H": v.shape[2], "V": v.shape[3], "K": r.shape[3], "SHARE": share}


def _run(kernel: Kernel, primals, share: int) -> list[mx.array]:
    """y, the last state, and of KEEPING the states before each chunk and u."""
    S0, r, v = primals[0], primals[1], primals[4]
    keep, (B, T) = kernel is KEEPING, v.shape[:2]
    shapes = [v.shape, S0.shape, *([(B, chunks(T), *S0.shape[1:]), v.shape] if keep else [])]
    lanes = v.size // T * share
    return kernel(primals, shapes, lanes=lanes, KEEP=int(keep), **_numbers(r, v, share))


def _gradients(primals, cotangents, share: int) -> tuple[mx.array, ...]:
    S0, r, w, k, v, a, b, marks = primals
    c, c_S1 = cotangents
    T, numbers = v.shape[1], _numbers(r, v, share)
    _, _, saved, u = _run(KEEPING, primals, share)
    shapes = [S0.shape, saved.shape, v.shape, v.shape]
    lanes = v.size // T * share
    g_S0, entering, g_v, q = ADJOINT((r, w, k, a, b, marks, c, c_S1), shapes, lanes=lanes, **numbers)
    known = (r, w, k, v, a, b, marks, saved, entering, u, q, c)
    lanes = r.size // T * chunks(T)
    g_r, g_w, g_k, g_a, g_b = COLUMNS(known, [r.shape] * 5, lanes=lanes, **numbers)
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
# Lanes that may share a row: none, as many as keep several columns each, all of a simdgroup.
SHARES = (1, 4, 32)


def _ways(K: int = 4) -> tuple[dict[str, int], ...]:
    return tuple({"share": share} for share in SHARES if K % share == 0)


CASE = Case(compiled.wkv7, _arguments, 5, _call, compiled.wkv7_reference, variants=HEADS, ways=_ways)
