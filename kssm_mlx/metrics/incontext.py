"""Is there anything to learn inside one sequence? Adaptive coders that count as they read, and nothing else.

A coder of order k and stride s predicts x_t from c = (x_{t-s}, ..., x_{t-ks}) by what followed the same c
earlier in the same sequence:

    p(x | c) = (n(c, x) + a / V) / (n(c) + a),   a = 0.05,   uniform when c is new.

Two interleaved periodic streams are found by stride 2, plain text by stride 1, i.i.d. tokens by none. A gain
is sufficient evidence of structure, not necessary: a rule that never repeats a context, such as modular
addition, has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kssm_mlx.errors import DataError

ORDERS = (1, 2, 3)
STRIDES = (1, 2, 3, 4)
ALPHA = 0.05


@dataclass(frozen=True)
class InContext:
    """What the best coder reached: mean code length in nats/token, and every coder's by (order, stride)."""

    order: int
    stride: int
    code_length: float
    vocab_size: int
    code_lengths: dict[tuple[int, int], float]

    @property
    def gain(self) -> float:
        """1 - code length / ln V: 0 for what looks uniform, 1 for what is known for certain."""
        return 1 - self.code_length / math.log(self.vocab_size)


def in_context(sequences: np.ndarray, vocab_size: int, scored: np.ndarray | None = None) -> InContext:
    """Run every coder of ORDERS x STRIDES over each sequence by itself and keep the best.

    Shapes: sequences [B, L] ids; scored bool [B, L] or [L], places that count (default: all but the first).
    Raises: DataError if an id is outside the vocabulary or there is nothing to predict: no scored place, or
        a vocabulary of one token.
    Source: docs/background/allostasis.md#in-context-coders.
    """
    sequences = np.asarray(sequences, dtype=np.int64)
    _, L = sequences.shape
    places = np.broadcast_to(np.arange(L) > 0 if scored is None else scored, sequences.shape)
    if sequences.min() < 0 or sequences.max() >= vocab_size:
        raise DataError(
            f"ids run from {sequences.min()} to {sequences.max()}; expected 0 to {vocab_size - 1}"
        )
    if vocab_size < 2 or not places.any():
        raise DataError(
            f"vocabulary of {vocab_size} and {int(places.sum())} scored tokens leave nothing to predict; "
            "expected at least 2 and 1"
        )
    lengths = {
        (order, stride): float(code_lengths(sequences, vocab_size, order, stride)[places].mean())
        for order in ORDERS
        for stride in STRIDES
    }
    order, stride = min(lengths, key=lengths.__getitem__)
    return InContext(order, stride, lengths[order, stride], vocab_size, lengths)


def code_lengths(sequences: np.ndarray, vocab_size: int, order: int, stride: int) -> np.ndarray:
    """-ln p of every token under one coder; ln V where there is no earlier context to look at.

    Shapes: sequences [B, L] -> [B, L], nats.
    """
    B, L = sequences.shape
    nats = np.full((B, L), math.log(vocab_size))
    reach = order * stride
    # Nothing has so long a past: the coder knows no better than chance.
    if reach >= L:
        return nats
    context = np.broadcast_to(np.arange(B)[:, None], (B, L - reach))
    for lag in range(stride, reach + 1, stride):
        context = _join_codes(context, sequences[:, reach - lag : L - lag], vocab_size)
    n_c = _seen_before(context)
    n_cx = _seen_before(_join_codes(context, sequences[:, reach:], vocab_size))
    nats[:, reach:] = -np.log((n_cx + ALPHA / vocab_size) / (n_c + ALPHA))
    return nats


def _join_codes(context: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """One small number for (context, token), renumbered so that long contexts cannot overflow."""
    codes = context * vocab_size + tokens
    return np.unique(codes, return_inverse=True)[1].reshape(codes.shape)


def _seen_before(codes: np.ndarray) -> np.ndarray:
    """How often each code occurs earlier; codes carry their row, so a row never sees another.

    Shapes: codes [B, L] -> [B, L].
    """
    flat = codes.reshape(-1)
    by_code = np.argsort(flat, kind="stable")
    ordered = flat[by_code]
    group = np.flatnonzero(np.diff(ordered, prepend=-1))
    rank = np.arange(flat.size) - np.repeat(group, np.diff(group, append=flat.size))
    count = np.empty_like(rank)
    count[by_code] = rank
    return count.reshape(codes.shape)
