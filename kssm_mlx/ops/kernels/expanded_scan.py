"""The expanded scan as kernels: states are kept every CHUNK tokens, and made again from there backwards.

Backward is two kernels: the adjoint of the states, serial in time and kept once per chunk; then, all chunks
side by side, every gradient. Of what all channels share a lane sums its own channels, and MLX the lanes.
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import custom_function
from kssm_mlx.ops import expanded_scan as compiled
from kssm_mlx.ops.gpu import PADDING, Kernel, gradients, marks, streams
from kssm_mlx.ops.proof import SIZES, Case, normal, valid
from kssm_mlx.ops.scan import mask_resets, mask_tokens

# A longer chunk's maps and states would not fit in a lane's registers.
CHUNK = 8
# Lanes among which the channels of a row are dealt out in the last kernel: a pack of the widest registers.
# What channels share is written once for each lane, so that twice as many take a quarter more time.
SHARES = 16

ARGUMENTS = "x dt B C gamma omega kappa marks"
FORWARD = Kernel(
    "expanded_scan_forward", "T D N", f"z0 {ARGUMENTS}", "y power z1 saved", "D", "B:0 C:0", chunk=CHUNK
)
KNOWN = f"{ARGUMENTS} saved"
ADJOINT = Kernel(
    "expanded_scan_adjoint", "T D N", f"{KNOWN} c c_power c_z1", "g_z0 entering", "D", "B:0 C:0", chunk=CHUNK
)
GRADIENTS = Kernel(
    "expanded_scan_gradients",
    "T D N SHARES",
    f"{KNOWN} entering c c_power",
    "g_x g_dt g_B g_C g_gamma g_omega g_kappa",
    "(D % SHARES == 0 ? SHARES : 1)",
    "B:0 C:0",
    chunk=CHUNK,
)


def expanded_scan(x, dt, B, C, gamma, omega, kappa, state, *, resets=None, lengths=None):
    """Shapes as in `ops.expanded_scan`."""
    rows, T, D = x.shape
    if resets is not None:
        resets = mask_resets(resets, lengths)
    what = marks(resets, rows, T)
    if lengths is not None:
        what = mx.where(mask_tokens(lengths, T), what, PADDING).astype(mx.uint8)
    N = gamma.shape[1]
    z0 = mx.zeros((rows, 2, N, D)) if state is None else state.astype(mx.float32).swapaxes(2, 3)
    rates = (v.astype(mx.float32).T for v in (gamma, omega, kappa))
    y, power, z, _ = _scan(z0, *streams(x, dt, B, C), *rates, what)
    return y, power, z.swapaxes(2, 3)


@custom_function
def _scan(z0, x, dt, B, C, gamma, omega, kappa, marks):
    rows, T, D = x.shape
    kept = (rows, _chunks(T), *z0.shape[1:])
    arrays = (z0, x, dt, B, C, gamma, omega, kappa, marks)
    return tuple(FORWARD(arrays, [x.shape, x.shape, z0.shape, kept], lanes=rows * D, **_sizes(x, B)))


@_scan.vjp
def _(primals, cotangents, outputs):
    z0, x, dt, B, C, *rates, marks = primals
    c, c_power, c_z1, _ = cotangents
    saved, sizes = outputs[3], _sizes(x, B)
    rows, T, D = x.shape
    known = (x, dt, B, C, *rates, marks, saved)
    g_z0, entering = ADJOINT((*known, c, c_power, c_z1), [z0.shape, saved.shape], lanes=rows * D, **sizes)
    shares = min(SHARES, D)
    shared, own = [(*B.shape, shares)] * 2, [(rows, _chunks(T), *z0.shape[2:])] * 3
    lanes = rows * _chunks(T) * shares
    g_x, g_dt, g_B, g_C, *g_rates = GRADIENTS(
        (*known, entering, c, c_power), [x.shape, x.shape, *shared, *own], lanes=lanes, **sizes, SHARES=shares
    )
    g_rates = [g.sum((0, 1)) for g in g_rates]
    return gradients(primals, (g_z0, g_x, g_dt, g_B.sum(-1), g_C.sum(-1), *g_rates, mx.zeros_like(marks)))


def _sizes(x: mx.array, B: mx.array) -> dict[str, int]:
    return {"T": x.shape[1], "D": x.shape[2], "N": B.shape[3]}


def _chunks(T: int) -> int:
    return -(-T // CHUNK)


def _arguments(B, T, D, N=3):
    tokens = [normal(0, B, T, D), 0.3 * mx.abs(normal(1, B, T, D)), normal(2, B, T, 2, N)]
    rates = [0.05 + mx.abs(normal(4, D, N)), normal(5, D, N), mx.abs(normal(6, D, N))]
    # In the disc whose radius is kappa^(-1/2).
    state = 0.6 * mx.tanh(normal(7, B, 2, D, N)) * mx.rsqrt(mx.maximum(rates[2], 1))
    return [*tokens, normal(3, B, T, 2, N), *rates, state]


def call(op, x, masks):
    """Of x, dt, B, C, gamma, omega, kappa and the state."""
    y, power, z = op(*x, **masks)
    return [valid(y, masks), valid(power, masks), z]


CASE = Case(compiled.expanded_scan, _arguments, 4, call, compiled.expanded_scan_reference, sizes=SIZES)
