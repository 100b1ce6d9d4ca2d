"""A tiny model with everything that training has to look after: noise, knobs, phases, two branches."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import Output, clamp_output

VOCAB = 6


@dataclass(frozen=True)
class Config:
    vocab_size: int


class Core(nn.Module):
    """N phases pulled together by a coupling K, and shaken by noise of spread sigma in training."""

    def __init__(self, width: int):
        super().__init__()
        self.omega = mx.linspace(-1, 1, width)
        self.push = nn.Linear(width, width, bias=False)
        self.K, self.sigma = mx.array(1.0), mx.array(0.3)
        self.freeze(keys=["K", "sigma"], recurse=False)

    def __call__(self, x, key):
        theta = self.omega + self.push(x)
        if self.training:
            theta = theta + self.sigma * mx.random.normal(theta.shape, key=key)
        c, s = (f(theta).mean(axis=-1, keepdims=True) for f in (mx.cos, mx.sin))
        theta = theta + self.K * (s * mx.cos(theta) - c * mx.sin(theta))
        R = mx.sqrt(mx.cos(theta).mean(axis=-1) ** 2 + mx.sin(theta).mean(axis=-1) ** 2)
        return mx.sin(theta), {"R": R[..., None], "theta": theta}


class ControlledModel(nn.Module):
    model_type, stochastic, clamp_sites = "controlled", True, ("output",)
    knobs = ("core.K", "core.sigma")
    no_decay = ("omega", "bias")

    def __init__(self, vocab_size: int = VOCAB, width: int = 8, seed: int = 0):
        super().__init__()
        self.args = Config(vocab_size)
        keys = mx.random.split(mx.random.key(seed), 4)
        self.embedding = nn.Embedding(vocab_size, width)
        self.core = Core(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for module, key in zip((self.embedding, self.core.push, self.head), keys):
            module.weight = 0.3 * mx.random.normal(module.weight.shape, key=key)

    def component(self, path: str) -> str:
        return {"core": "mamba", "head": "head"}.get(path.partition(".")[0], "rwkv")

    def make_cache(self):
        return [[None]]

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None, key=None):
        x = self.embedding(tokens)
        y, trace = self.core(x, key)
        x = clamp_output(x, x + y, intervention, 0)
        return Output(self.head(x), [[x[:, -1]]], {f"block00/{name}": a for name, a in trace.items()})

    @property
    def cast_predicate(self):
        return lambda path: True
