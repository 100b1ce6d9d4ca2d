"""Causal multi-head attention with a cache that knows documents: rows, cuts and resets as in a recurrence.

    q, k, v = W_qkv x;   y = W_o softmax(q kᵀ / sqrt(d)) v

Beside its keys and values a cache holds where each of them stands in its document, -1 where nobody may look
(padding, an earlier document). So a batch of unequal lengths gives each row what it would get alone, a text
may be cut anywhere, and after a reset positions count from zero and nothing earlier is seen.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import Clamp, hold
from kssm_mlx.models.layers import linear
from kssm_mlx.ops.scan import mask_resets, mask_tokens

# Before every real position, so that one comparison tells what has been read.
UNSEEN = -1


class Attention(nn.Module):
    """Rows [hd, (h+1)d) of each third of `qkv` (queries, keys, values) and columns of `out` are head h's.

    reach: a token sees itself and the `reach` tokens before it, and the cache has that fixed size; None sees
    the whole document with a cache that grows. rotary: positions as rotations, which no text outgrows.
    causal = False (legacy) sees the future of the call.
    """

    def __init__(
        self,
        key: mx.array,
        d_model: int,
        heads: int,
        *,
        std: float | None = None,
        out_std: float | None = None,
        bias: bool = False,
        rotary: bool = False,
        reach: int | None = None,
        causal: bool = True,
    ):
        super().__init__()
        k_in, k_out = mx.random.split(key)
        self.qkv = linear(k_in, d_model, 3 * d_model, std=std, bias=bias)
        self.out = linear(k_out, d_model, d_model, std=out_std, bias=bias)
        self._heads, self._rotary, self._reach, self._causal = heads, rotary, reach, causal

    def __call__(self, x, entry, resets, lengths, clamps: tuple[Clamp, ...] = (), inside=None, trace=None):
        """Shapes: x [B, T, D] -> y [B, T, D] and the entry: keys, values [B, S, H, d], position [B, S].

        inside: what an intervention does to the heads, written into `trace` (acts.py).
        """
        q, k, v = mx.split(self.qkv(x), 3, axis=-1)
        q, k = (inside.detach_routing(z) for z in (q, k)) if inside else (q, k)
        q, k, v = (mx.unflatten(z, -1, (self._heads, -1)) for z in (q, k, v))
        past = self._blank_entry(k) if entry[0] is None else entry
        at = positions(past[2], resets, lengths, x.shape[1])
        document = mx.zeros_like(at)
        if resets is not None:
            document = mx.cumsum(mask_resets(resets, lengths).astype(mx.int32), axis=1)
        keys, values, where = (mx.concatenate(list(parts), axis=1) for parts in zip(past, (k, v, at)))
        y = self._attend(q, keys, values, where, at, document)
        cache = self._trim_cache(keys, values, drop_ended(where, document), lengths, x.shape[1])
        y = hold(y, clamps).flatten(-2)
        return self.out(inside.units(y, trace) if inside else y), cache

    def _blank_entry(self, k: mx.array) -> list[mx.array]:
        """The cache before the first token: empty, or `reach` places where there is nothing."""
        B, _, H, d = k.shape
        nothing = mx.zeros((B, self._reach or 0, H, d), k.dtype)
        return [nothing, nothing, mx.full(nothing.shape[:2], UNSEEN)]

    def _attend(self, q, keys, values, where, at, document) -> mx.array:
        """What each query finds. Shapes: q [B, T, H, d]; keys, values [B, S + T, H, d] -> [B, T, H, d]."""
        visible = self._visible_tokens(where, at, document)
        if self._rotary:
            # Angles count from the call's first token: a long stream costs no precision.
            q, keys = rotate(q, at - at[:, :1]), rotate(keys, where - at[:, :1])
        q, keys, values = (z.swapaxes(1, 2) for z in (q, keys, values))
        y = mx.fast.scaled_dot_product_attention(
            q, keys, values, scale=q.shape[-1] ** -0.5, mask=visible[:, None]
        )
        return y.swapaxes(1, 2)

    def _visible_tokens(self, where, at, document) -> mx.array:
        """[B, T, S + T] bool; each token sees itself, and in the padding nothing else."""
        S, T = where.shape[1] - at.shape[1], at.shape[1]
        distance = at[..., None] - where[:, None]
        same = mx.pad(document, [(0, 0), (S, 0)])[:, None] == document[..., None]
        seen = (where[:, None] > UNSEEN) & same
        if self._causal:
            seen = seen & (distance >= 0)
        if self._reach is not None:
            seen = seen & (distance <= self._reach)
        return seen | (mx.arange(S + T) == S + mx.arange(T)[:, None])

    def _trim_cache(self, keys, values, where, lengths, T: int) -> list[mx.array]:
        """The cache after the call; of fixed size, it ends with each row's last valid token."""
        if self._reach is None:
            return [keys, values, where]
        start = mx.full((keys.shape[0],), T) if lengths is None else lengths
        index = start[:, None] + mx.arange(self._reach)
        where = mx.take_along_axis(where, index, axis=1)
        there = (where > UNSEEN)[..., None, None]
        keys, values = (mx.take_along_axis(z, index[..., None, None], axis=1) for z in (keys, values))
        return [mx.where(there, keys, 0), mx.where(there, values, 0), where]


def drop_ended(where: mx.array, document: mx.array) -> mx.array:
    """Positions without those of documents that have ended; what a cache held before is of document 0."""
    numbers = mx.pad(document, [(0, 0), (where.shape[1] - document.shape[1], 0)])
    return mx.where(numbers == document[:, -1:], where, UNSEEN)


def positions(past: mx.array | None, resets: mx.array | None, lengths: mx.array | None, T: int) -> mx.array:
    """Where each new token stands in its document, from 0; -1 in the padding.

    Shapes: past [B, S], the positions in a cache; resets [B, T] bool; lengths [B] -> [B, T] int32, or [1, T]
        where no argument tells B.
    """
    t = mx.arange(T)[None]
    if past is None:
        at = t
    else:
        at = t + 1 + mx.pad(past, [(0, 0), (0, 1)], constant_values=UNSEEN).max(axis=1, keepdims=True)
    if resets is not None:
        latest = mx.cummax(mx.where(resets, t, UNSEEN), axis=1)
        at = mx.where(latest > UNSEEN, t - latest, at)
    return at if lengths is None else mx.where(mask_tokens(lengths, T), at, UNSEEN)


def rotate(x: mx.array, position: mx.array) -> mx.array:
    """RoPE: pairs of channels i and i + d/2 turned by position · 10000^(-2i/d).

    Shapes: x [B, T, H, d], d even; position [B, T]. Source: Su et al. 2021, "RoFormer", equation 34.
    """
    half = x.shape[-1] // 2
    frequency = 10000.0 ** -(mx.arange(half) / half)
    angle = (position[..., None] * frequency)[:, :, None]
    a, b = mx.split(x.astype(mx.float32), 2, axis=-1)
    c, s = mx.cos(angle), mx.sin(angle)
    return mx.concatenate([a * c - b * s, a * s + b * c], axis=-1).astype(x.dtype)
