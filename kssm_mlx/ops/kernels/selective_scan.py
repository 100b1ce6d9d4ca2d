"""The selective scan as GPU kernels: states kept every CHUNK tokens, gradients chunk by chunk.

Backward is three kernels without any exchange between threads: the adjoint of the state, serial in time and
kept once per chunk; then, all chunks side by side, the gradients of each channel and of what channels share.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from kssm_mlx.ops import custom_function
from kssm_mlx.ops import selective_scan as compiled
from kssm_mlx.ops.gpu import Kernel, chunks, gradients, marks, streams
from kssm_mlx.ops.kernels import in_time
from kssm_mlx.ops.proof import IN_PARTS, SIZES, Case, normal, valid
from kssm_mlx.ops.scan import mask_resets, mask_tokens

ARGUMENTS = "h0 x dt A B C marks"
FORWARD = Kernel("selective_scan_forward", "T D N G", ARGUMENTS, "y h1 saved", "D / G", "A:N B:0 C:0")
ADJOINT = Kernel(
    "selective_scan_adjoint", "T D N G", "dt A C marks c c_h1", "g_h0 entering", "D / G", "A:N C:0"
)
KNOWN = "x dt A B C marks saved entering c"
CHANNELS = Kernel("selective_scan_channels", "T D N G", KNOWN, "g_x g_dt g_A", "D / G", "A:N B:0 C:0")
STATES = Kernel("selective_scan_states", "T D N G", KNOWN, "g_B g_C", "N", "x:0 dt:0 c:0 saved:D entering:D")


def selective_scan(x, dt, A, B, C, state=None, *, resets=None, lengths=None):
    """Shapes as in `ops.selective_scan`."""
    return grouped_scan(x, dt, A, B[:, :, None], C[:, :, None], state, resets, lengths)


def grouped_scan(x, dt, A, B, C, state, resets, lengths) -> tuple[mx.array, mx.array]:
    """Every B and C serves a group of neighbouring channels.

    Shapes: x, dt [B, T, D]; A [D, N]; B, C [B, T, G, N]; state [B, D, N] or None; resets [B, T];
        lengths [B]. Returns y [B, T, D] and the state.
    """
    rows, T, D = x.shape
    if lengths is not None:
        dt = mx.where(mask_tokens(lengths, T)[..., None], dt, 0)
    if resets is not None:
        resets = mask_resets(resets, lengths)
    h0 = mx.zeros((rows, B.shape[-1], D)) if state is None else state.astype(mx.float32).swapaxes(1, 2)
    x, dt, B, C = streams(x, dt, B, C)
    y, h, _ = _scan(h0, x, dt, A.astype(mx.float32), B, C, marks(resets, rows, T))
    return y, h.swapaxes(1, 2)


def _sizes(x: mx.array, B: mx.array) -> dict[str, int]:
    return {"T": x.shape[1], "D": x.shape[2], "G": B.shape[2], "N": B.shape[3]}


@custom_function
def _scan(h0, x, dt, A, B, C, marks):
    n = in_time.parts(x.shape[1], x.shape[0] * x.shape[2])
    return (_states if n == 1 else partial(_states_in_parts, n))(h0, x, dt, A, B, C, marks)


def _states(h0, x, dt, A, B, C, marks) -> tuple[mx.array, ...]:
    rows, T, D = x.shape
    kept = (rows, chunks(T), *h0.shape[1:])
    return tuple(
        FORWARD((h0, x, dt, A, B, C, marks), [x.shape, h0.shape, kept], lanes=rows * D, **_sizes(x, B))
    )


def _states_in_parts(n: int, h0, x, dt, A, B, C, marks) -> tuple[mx.array, ...]:
    """A part maps h to decay h + own: what a document begun inside leaves of h is nothing."""
    T = x.shape[1]
    x, dt, B, C, marks = (in_time.cut(v, n) for v in (x, dt, B, C, marks))
    own = _states(mx.zeros((x.shape[0], *h0.shape[1:])), x, dt, A, B, C, marks)[1]
    decay = mx.exp(dt.astype(mx.float32).sum(axis=1)[:, None] * A.T)
    decay = mx.where(marks.any(axis=1)[:, None, None], 0, decay)
    h, entering = h0, []
    for factor, end in zip(in_time.rows(decay, n), in_time.rows(own, n)):
        entering.append(h)
        h = factor * h + end
    y, _, saved = _states(in_time.batch(entering), x, dt, A, B, C, marks)
    return in_time.join(y, n, T), h, in_time.join(saved, n, chunks(T))


@_scan.vjp
def _(primals, cotangents, outputs):
    h0, x, dt, A, B, C, marks = primals
    c, c_h1, _ = cotangents
    saved, sizes = outputs[2], _sizes(x, B)
    rows, parts, N, D = saved.shape
    g_h0, entering = ADJOINT((dt, A, C, marks, c, c_h1), [h0.shape, saved.shape], lanes=rows * D, **sizes)
    known = (x, dt, A, B, C, marks, saved, entering, c)
    g_x, g_dt, g_A = CHANNELS(known, [x.shape, dt.shape, saved.shape], lanes=rows * parts * D, **sizes)
    g_B, g_C = STATES(known, [B.shape, C.shape], lanes=rows * parts * N * sizes["G"], **sizes)
    return gradients(primals, (g_h0, g_x, g_dt, g_A.sum((0, 1)).T, g_B, g_C, mx.zeros_like(marks)))


def _arguments(B, T, D, N=5):
    tokens = [normal(0, B, T, D), 0.3 * mx.abs(normal(1, B, T, D)), normal(2, B, T, N), normal(3, B, T, N)]
    return [*tokens, -mx.abs(normal(4, D, N)), normal(5, B, D, N)]


def call(op, x, masks):
    """Of x, dt, B, C, A and the state, in the order of what is read per token."""
    y, h = op(x[0], x[1], x[4], x[2], x[3], x[5], **masks)
    return [valid(y, masks), h]


CASE = Case(
    compiled.selective_scan, _arguments, 4, call, compiled.selective_scan_reference, sizes=(*SIZES, IN_PARTS)
)
