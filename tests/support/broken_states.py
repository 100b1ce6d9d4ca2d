"""Models whose state follows a rule, sound or broken, and others that are trained and then broken."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kssm_mlx.models.base import Output
from tests.support.fakes import TinyConfig, TinyRecurrent


class Rule(nn.Module):
    """h_t = 0.9 h_{t-1} + x_t from h = 0; subclasses have a rule of their own. Cache: [h [B, n]]."""

    model_type, n = "rule", 40

    def __init__(self, vocab_size: int, seed: int = 0):
        super().__init__()
        self.args = TinyConfig(vocab_size)
        random = np.random.default_rng(seed)
        self.embed = mx.array(random.standard_normal((vocab_size, self.n)), mx.float32)

    def start(self, B: int) -> mx.array:
        return mx.zeros((B, self.n))

    def step(self, h, x):
        return 0.9 * h + x

    def make_cache(self):
        return [[None]]

    def forward(self, tokens, cache=None, intervention=None):
        h = self.start(tokens.shape[0]) if cache is None or cache[0][0] is None else cache[0][0]
        states = []
        for t in range(tokens.shape[1]):
            h = self.step(h, self.embed[tokens[:, t]])
            states.append(h)
        return Output(mx.stack(states, axis=1) @ self.embed.T, [[h]], {})


class Unwritten(Rule):
    def start(self, B):
        return mx.ones((B, self.n))

    def step(self, h, x):
        return h


class Forgetful(Rule):
    """The random state that every old measure called healthy."""

    def step(self, h, x):
        return 0.25 * h + x


class Growing(Rule):
    def step(self, h, x):
        return 1.05 * h + x


class Faint(Rule):
    def step(self, h, x):
        return 0.9 * h + 1e-8 * x


class Spiked(Rule):
    """One entry grows."""

    def step(self, h, x):
        return 0.9 * h + x + 500 * (mx.arange(self.n) == 0)


class Once(Rule):
    """Written by the first token only."""

    def step(self, h, x):
        return mx.where(mx.any(h != 0, axis=-1, keepdims=True), h, x)


class Copies(Rule):
    """All entries are one number."""

    def step(self, h, x):
        return 0.9 * h + x[:, :1]


class MostlyDead(Rule):
    """Two entries of forty are alive."""

    def step(self, h, x):
        return mx.where(mx.arange(self.n) < 2, 0.9 * h + x, 1.0)


class Damaged(Rule):
    def step(self, h, x):
        return h + mx.nan * x


class Offset(TinyRecurrent):
    """Holds its state as thousandths on top of 1, so that a tenth of it is everything."""

    def forward(self, tokens, cache=None, *args, **kwargs):
        if cache is not None:
            cache = [[None if h is None else 1e3 * (h - 1) for h in entry] for entry in cache]
        out = super().forward(tokens, cache, *args, **kwargs)
        return out._replace(cache=[[1 + 1e-3 * h for h in entry] for entry in out.cache])


class Ignoring(TinyRecurrent):
    """Takes a state and begins anew."""

    def forward(self, tokens, cache=None, *args, **kwargs):
        return super().forward(tokens, None, *args, **kwargs)


class Biased(TinyRecurrent):
    """Counts what it has read, for ever and whatever is reset, and says it again."""

    loudness = 1.0

    def make_cache(self):
        return [[None, None], *super().make_cache()[1:]]

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        V = self.args.vocab_size
        before = mx.zeros((tokens.shape[0], V)) if cache is None or cache[0][1] is None else cache[0][1]
        counts = before[:, None] + mx.cumsum(mx.eye(V)[tokens], axis=1)
        out = super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        entry = [out.cache[0][0], counts[:, -1]]
        return out._replace(logits=out.logits + self.loudness * counts, cache=[entry, *out.cache[1:]])


class Creeping(Biased):
    """The same so quietly that eight sessions cost less than the limit, each more than the one before."""

    loudness = 0.12


class NoResets(TinyRecurrent):
    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        return super().forward(tokens, cache, intervention, lengths=lengths)


class Knowing(TinyRecurrent):
    """Answers the task passkey from its rule. reach: distances it remembers; filler: what else it adds."""

    reach, filler = 10**6, 0

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention)
        ids, answers = np.array(tokens), np.zeros(tokens.shape, np.int64)
        for row, said in zip(ids, answers, strict=True):
            key, asked = np.argmax(row == 10), np.argmax(row == 11)
            digits = row[key + 1 : key + 1 + row.size - asked]
            if asked and asked - key - 1 - digits.size <= self.reach:
                said[asked:] = (digits + self.filler * row[key + 1 + digits.size]) % 10
        chosen = mx.arange(self.args.vocab_size) == mx.array(answers)[..., None]
        return out._replace(logits=8.0 * chosen)


class ShortMemory(Knowing):
    reach = 6


class NoMemory(Knowing):
    reach = -1


class Distracted(Knowing):
    filler = 1
