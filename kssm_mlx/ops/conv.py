"""Short depthwise causal convolution over time, as W shifted multiply-adds.

`nn.Conv1d(groups=D)` computes the same eight times slower on a CPU. The state is the last W - 1 inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import mlx.core as mx

from kssm_mlx.ops import custom_function, dispatch


@dispatch.with_fallback
def causal_conv(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    state: mx.array | None = None,
    *,
    resets: mx.array | None = None,
    lengths: mx.array | None = None,
    impl: str = "auto",
) -> tuple[mx.array, mx.array]:
    """y_t = bias + sum_w weight[:, w] x_{t-W+1+w}, never reaching past a document's first token.

    Shapes: x [B, T, D]; weight [D, W], the last column meets the current token; bias [D]; state [B, W-1, D],
        zeros when None; resets [B, T] bool, True where a document begins; lengths [B] int, valid tokens of
        right-padded rows. Returns y [B, T, D] and the state after each row's last valid token.
    Raises: ConfigError for an `impl` that cannot run here (see `dispatch`).
    """
    B, T, D = x.shape
    W = weight.shape[1]
    past = mx.zeros((B, W - 1, D), x.dtype) if state is None else state.astype(x.dtype)
    padded = mx.concatenate([past, x], axis=1)
    document = _document_index(resets, W)
    last = _last_inputs(padded, document, W, lengths)
    if W > 1 and (kernel := dispatch.kernel("conv", impl, x, W=W)):
        return kernel(x, weight, bias, past, resets), last
    same = None if document is None else [document[:, w : w + T] == document[:, W - 1 :] for w in range(W)]
    y = _taps(same)(padded, weight)
    return (y if bias is None else y + bias).astype(x.dtype), last


def _taps(same: list[mx.array] | None):
    """(padded [B, W-1+T, D], weight [D, W]) -> y [B, T, D], with a gradient that is four taps the other way.

    Differentiating through the slices instead would zero-fill an array for each.
    same: for each tap, [B, T] bool, True where source and target are of one document.
    """

    def of(x: mx.array, w: int) -> mx.array:
        return x if same is None else mx.where(same[w][..., None], x, 0)

    @custom_function
    def convolve(padded: mx.array, weight: mx.array) -> mx.array:
        # Rows of [W, D] are contiguous, columns of [D, W] are not: half the time.
        rows, T = mx.contiguous(weight.T), padded.shape[1] - weight.shape[1] + 1
        return _total(of(padded[:, w : w + T] * row, w) for w, row in enumerate(rows))

    @convolve.vjp
    def _(primals, dy, _):
        padded, weight = primals
        W, T = weight.shape[1], dy.shape[1]
        taps = [of(dy, w) for w in range(W)]
        by_tap = [(taps[w] * padded[:, w : w + T]).sum(axis=(0, 1)) for w in range(W)]
        back = _spread(taps, mx.contiguous(weight.T))
        return back.astype(padded.dtype), mx.stack(by_tap, axis=1).astype(weight.dtype)

    return convolve


def _spread(taps: list[mx.array], rows: mx.array) -> mx.array:
    """What each of the W-1+T inputs gave to all outputs. Shapes: taps W of [B, T, D], rows [W, D]."""
    W, T = len(taps), taps[0].shape[1]
    wide = [mx.pad(tap, [(0, 0), (W - 1, W - 1), (0, 0)]) for tap in taps]
    return _total(x[:, W - 1 - w : 2 * W - 2 - w + T] * row for w, (x, row) in enumerate(zip(wide, rows)))


def _total(parts: Iterable[mx.array]) -> mx.array:
    return reduce(mx.add, parts)


def _document_index(resets: mx.array | None, W: int) -> mx.array | None:
    """[B, W-1+T] running number of the document of each input; the carried inputs belong to number 0."""
    if resets is None:
        return None
    return mx.pad(mx.cumsum(resets.astype(mx.int32), axis=1), [(0, 0), (W - 1, 0)])


def _last_inputs(padded: mx.array, document: mx.array | None, W: int, lengths: mx.array | None) -> mx.array:
    """The W-1 inputs that end at each row's last valid token, zero where they precede its document."""
    T = padded.shape[1] - (W - 1)
    if lengths is None:
        window = padded[:, T:]
        numbers = None if document is None else (document[:, T:], document[:, -1:])
    else:
        index = lengths[:, None] + mx.arange(W - 1)[None]
        window = mx.take_along_axis(padded, index[..., None], axis=1)
        if document is None:
            numbers = None
        else:
            last = mx.take_along_axis(document, lengths[:, None] + W - 2, axis=1)
            numbers = (mx.take_along_axis(document, index, axis=1), last)
    if numbers is None:
        return window
    return mx.where((numbers[0] == numbers[1])[..., None], window, 0)
