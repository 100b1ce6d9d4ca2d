"""Language models made of counts of a text: one that speaks without training, and poorer relatives."""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kssm_mlx.models.base import Output, write_back

V = 256


class Counted(nn.Module):
    """p(byte | `order` - 1 bytes before it), counted on `text`; the state is the last byte, V at the start.

    order: 3 trigram, 2 bigram, 1 unigram.
    """

    model_type, clamp_sites = "counted", ()

    def __init__(self, text: str, order: int = 3):
        super().__init__()
        self.args = SimpleNamespace(model_type="mamba", vocab_size=V, hidden_size=8, num_hidden_layers=2)
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        unigram = _smoothed(np.bincount(ids, minlength=V), np.full(V, 1 / V))
        bigram = _conditional(ids[:-1], ids[1:], np.tile(unigram, (V, 1)), V)
        pairs, of = np.unique(ids[:-2] * V + ids[1:-1], return_inverse=True)
        trigram = _conditional(of, ids[2:], bigram[pairs % V], pairs.size)
        # Row of the table for (byte before last or V, last byte).
        rows = np.tile(np.arange(V), (V + 1, 1))
        if order == 1:
            bigram[:] = unigram
        if order == 3:
            rows[pairs // V, pairs % V] = V + np.arange(pairs.size)
        self.table = mx.array(np.log(np.concatenate([bigram, trigram])), mx.float32)
        self._rows = mx.array(rows, mx.int32)

    @property
    def layers(self):
        return []

    @property
    def cast_predicate(self):
        return lambda name: True

    def make_cache(self):
        return [[None]]

    def __call__(self, tokens, cache=None):
        logits, new, _ = self.forward(tokens, cache)
        if cache is not None:
            write_back(cache, new)
        return logits

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        before = None if cache is None else cache[0][0]
        first = mx.full((tokens.shape[0], 1), V, mx.int32) if before is None else before
        previous = mx.concatenate([first, tokens[:, :-1].astype(mx.int32)], axis=1)
        if resets is not None:
            previous = mx.where(resets, V, previous)
        last = tokens[:, -1:].astype(mx.int32)
        if lengths is not None:  # a row's state is its last token inside
            joined = mx.concatenate([first, tokens.astype(mx.int32)], axis=1)
            last = mx.take_along_axis(joined, lengths[:, None].astype(mx.int32), axis=1)
        return Output(self.table[self._rows[previous, tokens]], [[last]], {})


class Forgetful(Counted):
    """Takes a cache and ignores it."""

    def forward(self, tokens, cache=None, *args, **kwargs):
        return super().forward(tokens, None, *args, **kwargs)


class Stuck(Counted):
    """Says the same byte for ever when it is asked one byte at a time; in one piece it reads well."""

    def forward(self, tokens, cache=None, *args, **kwargs):
        out = super().forward(tokens, cache, *args, **kwargs)
        return out if cache is None else out._replace(logits=out.logits + 50 * (mx.arange(V) == ord("a")))


def _conditional(contexts, tokens, lower, count: int) -> np.ndarray:
    counts = np.zeros((count, V))
    np.add.at(counts, (contexts, tokens), 1)
    return np.stack([_smoothed(n, p) for n, p in zip(counts, lower)])


def _smoothed(counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Witten and Bell."""
    kinds = max(1, np.count_nonzero(counts))
    return (counts + kinds * lower) / (counts.sum() + kinds)
