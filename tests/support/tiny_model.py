"""The smallest language model that keeps the protocol: embedding, one leaky memory per channel, a head."""

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import Output

VOCAB = 11


class TinyModel(nn.Module):
    """traces counts the calls of `forward`: under `mx.compile`, how often it was traced."""

    model_type = "tiny"
    no_decay = ("log_rate", "bias", "phases")
    clamp_sites = ()

    def __init__(self, width: int = 6, seed: int = 0, memory: bool = True):
        super().__init__()
        keys = mx.random.split(mx.random.key(seed), 4)
        self.embedding = nn.Embedding(VOCAB, width)
        self.embedding.weight = mx.random.normal((VOCAB, width), key=keys[0])
        self.log_rate = mx.random.normal((width,), key=keys[1])
        self.phases = 0.1 * mx.random.normal((2, width), key=keys[2])
        self.act = nn.Identity()  # a module without parameters: an empty dict among the parameters
        self.head = nn.Linear(width, VOCAB)
        self.head.weight = mx.random.normal((VOCAB, width), key=keys[3])
        self.head.bias = mx.zeros((VOCAB,))
        self.traces, self._memory = 0, memory

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        self.traces += 1
        x = self.embedding(tokens)
        keep = mx.sigmoid(self.log_rate) if self._memory else mx.zeros_like(self.log_rate)
        state, states = (mx.zeros_like(x[:, 0]) if cache is None else cache[0][0]), []
        for t in range(tokens.shape[1]):
            kept = state if resets is None else mx.where(resets[:, t, None], 0.0, state)
            state = keep * kept + mx.tanh(x[:, t] + self.phases[0])
            states.append(state)
        h = mx.stack(states, axis=1)
        trace = {"block00/R": mx.abs(mx.tanh(h)), "block00/psi": 3 * h, "block00/state": state, "note": ["x"]}
        return Output(self.head(mx.sin(h + self.phases[1])), [[state]], trace)

    @property
    def cast_predicate(self):
        return lambda path: path != "log_rate"


class GrowingModel(TinyModel):
    """A cache that grows with the text, as attention's does."""

    model_type = "growing"

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens)
        seen = tokens if cache is None else mx.concatenate([cache[0][0], tokens], axis=1)
        return out._replace(cache=[[seen]])


def random_tokens(rows: int = 4, length: int = 9, seed: int = 1) -> mx.array:
    return mx.random.randint(0, VOCAB, (rows, length), key=mx.random.key(seed)).astype(mx.int32)
