"""Does a model of mlx-lm keep rows and documents apart? Seen with its own parameters, on some tokens."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.models.base import LanguageModel, flatten, number

EXACT, ROUNDED = 1e-3, 0.1  # of the logits' spread: what float32 and half precision may differ by
T = 8


def mixes_rows(model: LanguageModel) -> bool:
    """Whether a row that ended early goes on otherwise than it would alone."""
    tokens = _tokens(model)
    together = model.forward(tokens, None, lengths=mx.array([3, T]))
    after = model.forward(tokens, together.cache).logits[0]
    alone = model.forward(mx.concatenate([tokens[:1, :3], tokens[:1]], axis=1)).logits[0, 3:]
    return _measure_difference(model, after, alone)


def mixes_documents(model: LanguageModel) -> bool:
    """Whether a document is read otherwise behind another than alone."""
    tokens, begins = _tokens(model), mx.array([3, 5])
    together = model.forward(tokens, None, resets=mx.arange(T)[None] == begins[:, None]).logits
    pairs = [(together[b, t:], model.forward(tokens[b : b + 1, t:]).logits[0]) for b, t in enumerate((3, 5))]
    return any(_measure_difference(model, a, b) for a, b in pairs)


def _tokens(model: LanguageModel) -> mx.array:
    return (7 * mx.arange(2 * T) % model.args.vocab_size).reshape(2, T)


def _measure_difference(model: LanguageModel, a: mx.array, b: mx.array) -> bool:
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    half = any(p.dtype in (mx.bfloat16, mx.float16) for p in flatten(model.parameters()).values())
    allowed = (ROUNDED if half else EXACT) * number(mx.std(b))
    return not number(mx.abs(a - b).max()) <= allowed
