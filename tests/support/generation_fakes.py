"""What these tests add to `tests/support/fakes.py`: a model that counts, a cache that grows, no separator."""

import mlx.core as mx

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.models.base import Output
from tests.support.fakes import TinyRecurrent


class Counting(TinyRecurrent):
    """Over bytes; `calls` counts the runs of `forward` in Python, `longest` is the most tokens in one."""

    def __init__(self, vocab_size=256):
        super().__init__(vocab_size)
        self.calls, self.longest = 0, 0

    def forward(self, tokens, cache=None, intervention=None, **rest):
        self.calls, self.longest = self.calls + 1, max(self.longest, tokens.shape[1])
        return super().forward(tokens, cache, intervention, **rest)


class Growing(Counting):
    """Its cache keeps every embedding it has read, as attention does."""

    def make_cache(self):
        return [[None]]

    def forward(self, tokens, cache=None, intervention=None, **rest):
        self.calls += 1
        old = [] if cache is None or cache[0][0] is None else [cache[0][0]]
        seen = mx.concatenate([*old, self.embed(tokens)], axis=1)
        mean = mx.broadcast_to(mx.mean(seen, axis=1, keepdims=True), (*tokens.shape, seen.shape[-1]))
        return Output(self.head(mean), [[seen]], {})


def endless():
    """Bytes without a document separator: nothing ends a row but its length."""
    tokenizer = ByteTokenizer()
    tokenizer.separator_id = None
    return tokenizer
