"""Tiny models that obey the protocol of models/base.py, healthy and sabotaged, for every test that needs one.

    model = TinyRecurrent(vocab_size=32)          healthy: a gated linear recurrence, causal, chunk-invariant
    model = Memoryless(vocab_size=32)             the same with one named defect

Each defect is one small override, so that a test shows which property it broke.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import Output, write_back


@dataclass(frozen=True)
class TinyConfig:
    vocab_size: int = 32
    width: int = 32
    blocks: int = 2
    model_type: str = "tiny"


class Block(nn.Module):
    """x + W_o (silu(W_g x) * h), with h_t = a_t h_{t-1} + (1 - a_t) W_b x_t and a_t = sigmoid(W_a x + 1)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def __call__(self, x, h0, resets, inside):
        """Shapes: x [B, T, D], h0 [B, D], resets and inside [B, T] bool -> y [B, T, D], h [B, T, D]."""
        a, b, gate = mx.split(self.mix(self.norm(x)), 3, axis=-1)
        a = mx.sigmoid(a + 1)
        b = (1 - a) * b
        a = mx.where(resets[..., None], 0.0, a)
        a, b = mx.where(inside[..., None], a, 1.0), mx.where(inside[..., None], b, 0.0)
        h = linear_recurrence(a, b, h0)
        return x + self.out(nn.silu(gate) * h), h


def linear_recurrence(a, b, h0):
    """h_t = a_t h_{t-1} + b_t for all t at once, by doubling. Shapes: a, b [B, T, D], h0 [B, D] -> [B, T,
    D].
    """
    b = mx.concatenate([b[:, :1] + a[:, :1] * h0[:, None], b[:, 1:]], axis=1)
    step = 1
    while step < a.shape[1]:
        tail = b[:, step:] + a[:, step:] * b[:, :-step]
        b = mx.concatenate([b[:, :step], tail], axis=1)
        a = mx.concatenate([a[:, :step], a[:, step:] * a[:, :-step]], axis=1)
        step *= 2
    return b


class TinyRecurrent(nn.Module):
    """A healthy language model of a few thousand parameters; cache: [h [B, D]] per block."""

    model_type = "tiny"
    clamp_sites = ("output",)
    no_decay = ("norm.weight", "bias")

    def __init__(self, vocab_size: int = 32, width: int = 32, blocks: int = 2, seed: int = 0):
        super().__init__()
        self.args = TinyConfig(vocab_size, width, blocks)
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = [Block(width) for _ in range(blocks)]
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab_size)
        self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Matrices N(0, 1/width), the head smaller: the fresh model predicts almost uniformly. Biases 0:
        what a layer draws when it is made comes from MLX's global state, another each time.
        """
        keys = iter(mx.random.split(mx.random.key(seed), 64))
        scale = self.args.width**-0.5
        flat = nn.utils.tree_flatten(self.parameters())
        new = [(n, scale * mx.random.normal(p.shape, key=next(keys))) for n, p in flat if p.ndim == 2]
        new += [(n, mx.zeros_like(p)) for n, p in flat if n.endswith("bias")]
        self.update(nn.utils.tree_unflatten(new))
        self.head.weight = 0.3 * self.head.weight

    @property
    def layers(self):
        return self.blocks

    def make_cache(self):
        return [[None] for _ in self.blocks]

    def __call__(self, tokens, cache=None):
        logits, new, _ = self.forward(tokens, cache)
        if cache is not None:
            write_back(cache, new)
        return logits

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        B, T = tokens.shape
        resets = mx.zeros((B, T), mx.bool_) if resets is None else resets
        inside = mx.ones((B, T), mx.bool_) if lengths is None else mx.arange(T)[None] < lengths[:, None]
        x, new = self.embed(tokens), []
        for i, block in enumerate(self.blocks):
            h0 = cache[i][0] if cache is not None and cache[i][0] is not None else mx.zeros((B, x.shape[-1]))
            y, h = block(x, h0, resets, inside)
            for clamp in intervention.of("output", i) if intervention else ():
                y = x + clamp.value  # what the block adds to the stream is held
            x = y
            new.append([h[:, -1]])
        return Output(self.head(self.norm(x)), new, {})


class Memoryless(TinyRecurrent):
    """Every token is read alone, like K-SSM v1 to v3."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        alone = super().forward(tokens.reshape(-1, 1), None, intervention)
        return Output(alone.logits.reshape(*tokens.shape, -1), cache or self.make_cache(), {})


class Acausal(TinyRecurrent):
    """The mean over time, future included, reaches every position, like the phase core in a forward hook."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        return out._replace(logits=out.logits + 0.1 * out.logits.mean(axis=1, keepdims=True))


class BatchMixing(TinyRecurrent):
    """Rows see the mean of the batch."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        return out._replace(logits=out.logits + 0.1 * out.logits.mean(axis=0, keepdims=True))


class Remembering(TinyRecurrent):
    """A hidden buffer makes the answer depend on the calls before it."""

    def __call__(self, tokens, cache=None):
        self._calls = getattr(self, "_calls", 0) + 1
        return super().__call__(tokens, cache) * (1 + 0.01 * self._calls)


class EvalNoOp(TinyRecurrent):
    """The blocks work in training mode only, like the hook that returned the unmodified output in eval."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        if self.training:
            return super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        return Output(self.head(self.norm(self.embed(tokens))), self.make_cache(), {})


class Forgetful(TinyRecurrent):
    """The cache is accepted and ignored."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        return super().forward(tokens, None, intervention, resets=resets, lengths=lengths)


class Noisy(TinyRecurrent):
    """Noise in evaluation, like K-SSM v3."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        return out._replace(logits=out.logits + 1e-3 * mx.random.normal(out.logits.shape))


class DeadParameter(TinyRecurrent):
    """One tensor that nothing reads, like the coupling of K-SSM v1."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.coupling = mx.ones((4, 4))


class DeadRows(TinyRecurrent):
    """A projection whose last two of ten rows nothing reads, like i and j of K-SSM v3."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.project = nn.Linear(self.args.width, 10)
        self.spread = nn.Linear(8, self.args.vocab_size)

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        extra = self.spread(self.project(self.embed(tokens))[..., :8])
        return out._replace(logits=out.logits + extra)


class TiedLoud(TinyRecurrent):
    """N(0, 1) embeddings with a tied head: the fresh model copies its input, like K-SSM v3 (CE 338)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.embed.weight = mx.random.normal(self.embed.weight.shape, key=mx.random.key(1))

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        return out._replace(logits=out.logits + self.embed.as_linear(self.embed(tokens)))


class NotANumber(TinyRecurrent):
    """Logits of NaN: no check may pass."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        return out._replace(logits=out.logits * float("nan"))
