"""Log-likelihoods of texts: of a whole one, and of what follows another, in nats and in full context.

A text is read as it would be in training, from the separator that opens a document; where a tokenizer has
none, its first token is given and not scored. The state is carried from piece to piece: no context is cut.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.errors import DataError
from kssm_mlx.models.base import LanguageModel, training_mode

CHUNK = 512  # tokens whose logits are in memory at once


class Likelihood(NamedTuple):
    """nats: the log-likelihood, at most 0; greedy: whether every token was the likeliest; tokens: scored."""

    nats: float
    greedy: bool
    tokens: int


def score_text(model: LanguageModel, tokenizer: Tokenizer, text: str) -> Likelihood:
    """All of a text. Raises: DataError for ids that the model does not have."""
    return _score(model, tokenizer, _encode(model, tokenizer, text), 0)


def score_continuation(
    model: LanguageModel, tokenizer: Tokenizer, context: str, continuation: str
) -> Likelihood:
    """What follows a context, both encoded as one text: its tokens are those after the context's own.

    Spaces at the end of the context belong to the continuation, whose tokens they are part of.
    Raises: DataError as `score_text`.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    before = len(_encode(model, tokenizer, context)) if context else 0
    return _score(model, tokenizer, _encode(model, tokenizer, context + continuation), before)


def _encode(model: LanguageModel, tokenizer: Tokenizer, text: str) -> np.ndarray:
    ids = np.asarray(tokenizer.encode(text), np.int32)
    if ids.size and ids.max() >= model.args.vocab_size:
        raise DataError(
            f"the text has token {ids.max()}, the model's vocabulary ends at {model.args.vocab_size - 1}; "
            f"{tokenizer.name} is not the tokenizer it was trained with"
        )
    return ids


def _score(model: LanguageModel, tokenizer: Tokenizer, ids: np.ndarray, given: int) -> Likelihood:
    """The tokens behind the first `given`, in pieces."""
    opening = [] if tokenizer.separator_id is None else [tokenizer.separator_id]
    ids = np.concatenate([opening, ids]).astype(np.int32)
    first = max(given + len(opening), 1)  # what nothing stands before is not scored
    nats, greedy, cache = 0.0, True, None
    with training_mode(model, training=False):
        for begin in range(0, len(ids) - 1, CHUNK):
            inputs, targets = ids[begin : begin + CHUNK][None], ids[begin + 1 : begin + CHUNK + 1]
            out = model.forward(mx.array(inputs[:, : len(targets)]), cache)
            logits = out.logits[0].astype(mx.float32)
            chosen = mx.take_along_axis(logits, mx.array(targets)[:, None], axis=-1)[:, 0]
            found = mx.stack(
                [chosen - mx.logsumexp(logits, axis=-1), mx.argmax(logits, axis=-1) == mx.array(targets)]
            )
            mx.eval(found, out.cache)
            cache = out.cache
            scored = np.arange(begin + 1, begin + 1 + len(targets)) >= first
            log_p, hits = np.array(found).astype(np.float64)
            nats, greedy = nats + float(log_p[scored].sum()), greedy and bool(hits[scored].all())
    return Likelihood(nats, greedy, max(len(ids) - first, 0))
