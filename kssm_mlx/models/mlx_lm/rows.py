"""What mlx-lm's attention is given for a cache: keys and values that know rows, lengths and documents.

mlx-lm asks a cache for three things: how far the text has come (`offset`), who may see whom (`make_mask`),
and all keys and values with the new ones behind them (`update_and_fetch`). Answered per row, they make most
of its models give each row of a batch what it would get alone, and nothing of an earlier document; apart.py
finds out which.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from kssm_mlx.models.attention import UNSEEN, drop_ended, positions
from kssm_mlx.models.base import Cache
from kssm_mlx.ops.scan import mask_resets


class Call:
    """Where the tokens of one call stand. The arguments are those of `LanguageModel.forward`.

    at [B or 1, T]: place of each token in its row; where [B, S + T]: that of every key, UNSEEN where nobody
    may look. Places are not restarted by a document: rotary positions only tell distances.
    """

    def __init__(self, cache: Cache | None, rows: int, T: int, resets, lengths):
        past = None if cache is None else cache[0][2]
        # Such a call is one that mlx-lm knows itself, and it has fast paths for it.
        self.plain = past is None and resets is None and lengths is None
        self.offset = 0 if past is None else past.max(axis=1) + 1
        at = mx.broadcast_to(positions(past, None, lengths, T), (rows, T))
        self.at, document = at, mx.zeros_like(at)
        if resets is not None:
            document = mx.cumsum(mask_resets(resets, lengths).astype(mx.int32), axis=1)
        self.document = mx.broadcast_to(document, at.shape)
        self.where = at if past is None else mx.concatenate([past, at], axis=1)
        self.left = drop_ended(self.where, self.document)
        self.padded = lengths is not None
        self.mask = lru_cache(maxsize=None)(self._mask)

    def _mask(self, window: int | None) -> mx.array:
        """[B, 1, T, S + T] bool: each token sees itself, and before it what is of its document."""
        T, S = self.at.shape[1], self.where.shape[1] - self.at.shape[1]
        distance = self.at[..., None] - self.where[:, None]
        same = mx.pad(self.document, [(0, 0), (S, 0)])[:, None] == self.document[..., None]
        seen = (self.where[:, None] > UNSEEN) & same & (distance >= 0)
        if window is not None:
            seen = seen & (distance < window)
        return (seen | (mx.arange(S + T) == S + mx.arange(T)[:, None]))[:, None]


class Rows:
    """The cache of one block in one call; asked twice, as in a block computed again, it answers the same."""

    def __init__(self, call: Call, entry: list):
        self.call, self.past = call, tuple(entry[:2])
        self.offset = call.offset
        self.grown: tuple[mx.array, mx.array] = self.past

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None):
        """A mask, or mlx-lm's words for the two that it has faster ways for."""
        wide = window_size is None or window_size >= N
        if self.call.plain and wide and not return_array:
            return "causal" if N > 1 else None
        return self.call.mask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Shapes: [B, H, T, d] -> [B, H, S + T, d]."""
        if self.past[0] is None:
            self.grown = keys, values
        else:
            old, read = self.past
            self.grown = mx.concatenate([old, keys], axis=2), mx.concatenate([read, values], axis=2)
        return self.grown

    def entry(self) -> list:
        """What the next call is given: keys, values [B, H, S, d] and their places [B, S]."""
        where = self.call.left
        keys, values = self.grown
        if self.call.padded:  # what stands in the padding depends on how a text was cut
            there = (self.call.where > UNSEEN)[:, None, :, None]
            keys, values = mx.where(there, keys, 0), mx.where(there, values, 0)
        return [keys, values, where]
