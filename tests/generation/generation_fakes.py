"""The smallest models with the house's protocol: what generation needs and nothing else."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.data.tokenizers import ByteTokenizer
from kssm_mlx.models.base import Output, write_back


class TinyRecurrent(nn.Module):
    """h <- tanh(E[x] + h W), one token after the other; `calls` counts how often Python runs `forward`."""

    model_type, clamp_sites = "tiny", ()

    def __init__(self, vocab_size=256, width=16, seed=0):
        super().__init__()
        self.args = SimpleNamespace(vocab_size=vocab_size)
        keys = mx.random.split(mx.random.key(seed), 3)
        self.embedding = mx.random.normal((vocab_size, width), key=keys[0])
        self.recurrent = mx.random.normal((width, width), key=keys[1]) / width**0.5
        self.head = mx.random.normal((width, vocab_size), key=keys[2])
        self.calls, self.longest = 0, 0

    def make_cache(self):
        return [[None]]

    def __call__(self, tokens, cache=None):
        output = self.forward(tokens, cache)
        if cache is not None:
            write_back(cache, output.cache)
        return output.logits

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        B, T = tokens.shape
        self.calls, self.longest = self.calls + 1, max(self.longest, T)
        h = mx.zeros((B, self.recurrent.shape[0])) if cache is None or cache[0][0] is None else cache[0][0]
        outputs = []
        for t in range(T):
            new = mx.tanh(self.embedding[tokens[:, t]] + h @ self.recurrent)
            h = new if lengths is None else mx.where((t < lengths)[:, None], new, h)
            outputs.append(h)
        return Output(mx.stack(outputs, axis=1) @ self.head, [[h]], {})


class Growing(TinyRecurrent):
    """Its cache keeps every embedding it has read, as attention does."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        self.calls += 1
        old = [] if cache is None or cache[0][0] is None else [cache[0][0]]
        seen = mx.concatenate([*old, self.embedding[tokens]], axis=1)
        logits = mx.tanh(mx.mean(seen, axis=1, keepdims=True)) @ self.head
        return Output(mx.broadcast_to(logits, (*tokens.shape, logits.shape[-1])), [[seen]], {})


def endless():
    """Bytes without a document separator: nothing ends a row but its length."""
    tokenizer = ByteTokenizer()
    tokenizer.separator_id = None
    return tokenizer
