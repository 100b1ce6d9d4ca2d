"""Expanded scans as kernels: states are kept every CHUNK tokens, and made again from there backwards.

Backward is two kernels: the adjoint of the states, serial in time and kept once per chunk; then, all chunks
side by side, every gradient. Of what all channels share a lane sums its own channels, and MLX the lanes.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from kssm_mlx.ops import custom_function
from kssm_mlx.ops.gpu import PADDING, Kernel, gradients, marks
from kssm_mlx.ops.scan import mask_resets, mask_tokens

# A longer chunk's maps and states would not fit in a lane's registers.
CHUNK = 8
# Lanes among which the channels of a row are dealt out in the last kernel: a pack of the widest registers.
# What channels share is written once for each lane, so that twice as many take a quarter more time.
SHARES = 16


def declare(name: str, state: str, shared: str, rates: str) -> tuple[Kernel, Kernel, Kernel]:
    """The forward kernel, the adjoint and the gradients, of bodies that call their arrays so.

    state: one letter, 0 and 1 behind it where a call begins and ends; shared: what a token brings for all
    channels; rates: what a population has for all tokens.
    """
    before, after, arguments = f"{state}0", f"{state}1", f"x dt {shared} {rates} marks"
    known, apart = f"{arguments} saved", " ".join(f"{word}:0" for word in shared.split())
    found = " ".join(f"g_{word}" for word in f"x dt {shared} {rates}".split())
    lanes = "(D % SHARES == 0 ? SHARES : 1)"

    def kernel(part: str, sizes: str, inputs: str, outputs: str, side: str = "D") -> Kernel:
        return Kernel(f"{name}_{part}", sizes, inputs, outputs, side, apart, chunk=CHUNK)

    return (
        kernel("forward", "T D N", f"{before} {arguments}", f"y power {after} saved"),
        kernel("adjoint", "T D N", f"{known} c c_power c_{after}", f"g_{before} entering"),
        kernel("gradients", "T D N SHARES", f"{known} entering c c_power", found, lanes),
    )


def differentiable(forward: Kernel, adjoint: Kernel, every: Kernel, shared: int) -> Callable:
    """(state, x, dt, `shared` arrays [B, T, _, N], rates [..., N, D], marks) -> y, power, state, saved.

    Shapes: state [B, _, N, D]; x, dt, y, power [B, T, D]; marks [B, T]; saved [B, chunks, _, N, D].
    """

    @custom_function
    def scan(state, x, *others):
        rows, T, D = x.shape
        kept = (rows, _chunks(T), *state.shape[1:])
        shapes = [x.shape, x.shape, state.shape, kept]
        return tuple(forward((state, x, *others), shapes, lanes=rows * D, **_sizes(x, state)))

    @scan.vjp
    def _(primals, cotangents, outputs):
        state, x, _, *others, marks = primals
        c, c_power, c_state, _ = cotangents
        saved, sizes = outputs[3], _sizes(x, state)
        rows, T, D = x.shape
        known = (*primals[1:], saved)
        g_state, entering = adjoint(
            (*known, c, c_power, c_state), [state.shape, saved.shape], lanes=rows * D, **sizes
        )
        shares = min(SHARES, D)
        shapes = [(*v.shape, shares) for v in others[:shared]]
        shapes += [(rows, _chunks(T), *v.shape) for v in others[shared:]]
        lanes = rows * _chunks(T) * shares
        g_x, g_dt, *found = every(
            (*known, entering, c, c_power), [x.shape, x.shape, *shapes], lanes=lanes, **sizes, SHARES=shares
        )
        found = [g.sum(-1) for g in found[:shared]] + [g.sum((0, 1)) for g in found[shared:]]
        return gradients(primals, (g_state, g_x, g_dt, *found, mx.zeros_like(marks)))

    return scan


def mark_tokens(resets: mx.array | None, lengths: mx.array | None, rows: int, T: int) -> mx.array:
    """What each token does to the state before it. Shapes: -> [B, T] uint8."""
    if resets is not None:
        resets = mask_resets(resets, lengths)
    what = marks(resets, rows, T)
    if lengths is not None:
        what = mx.where(mask_tokens(lengths, T), what, PADDING).astype(mx.uint8)
    return what


def _sizes(x: mx.array, state: mx.array) -> dict[str, int]:
    return {"T": x.shape[1], "D": x.shape[2], "N": state.shape[2]}


def _chunks(T: int) -> int:
    return -(-T // CHUNK)
