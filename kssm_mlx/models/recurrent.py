"""What the recurrent families share: the walk through the blocks, caches, traces and clamps.

A family adds its blocks and three steps: `embed` tokens, `finish` the residual stream, `project` it to
logits. A block is called `block(x, entry, carried, resets, lengths) -> x, entry, carried, trace`; `carried`
is what one block hands to the next beside the stream (the values of RWKV-7's first layer, the populations of
a K-SSM block; None elsewhere).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.utils import checkpoint

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import (
    Cache,
    Intervention,
    LanguageModel,
    Output,
    clamp_output,
    refuse_missing_method,
    refuse_unknown_clamps,
)
from kssm_mlx.models.interventions import apply

EVERY_SITE = ("S0", "S1", "S2", "S3", "S4", "routing")  # of a family whose blocks take `inside` (acts.py)


class RecurrentModel(LanguageModel):
    """The part of a `LanguageModel` that does not depend on the family.

    slots: the names of a cache entry's arrays. fp32: suffixes of parameters that keep fp32 whatever the
    weights are. no_quant: suffixes of modules that are never quantised.
    """

    clamp_sites = ("output",)
    act_sites: tuple[str, ...] = ("S0", "S1", "S4")
    slots: tuple[str, ...]
    fp32: tuple[str, ...]
    no_quant: tuple[str, ...]
    no_decay: tuple[str, ...]

    def __init__(self, config):
        super().__init__()
        self.args = config
        self.model_type = config.model_type
        self.checkpoint_blocks = False
        # What a checkpoint returns is computed, whether anybody reads it or not: `leave_out_states`.
        self.checkpoint_means = False

    def forward(
        self,
        tokens: mx.array,
        cache: Cache | None = None,
        intervention: Intervention | None = None,
        *,
        resets: mx.array | None = None,
        lengths: mx.array | None = None,
        key: mx.array | None = None,
    ) -> Output:
        """Shapes: tokens [B, T] int -> logits [B, T, V], new cache, trace `"block00/state"`, ..."""
        hidden, new, trace = self.hidden(tokens, cache, intervention, resets=resets, lengths=lengths, key=key)
        return Output(self.project(hidden), new, trace)

    def hidden(
        self, tokens, cache=None, intervention=None, *, resets=None, lengths=None, key=None
    ) -> tuple[mx.array, Cache, dict[str, Any]]:
        """What the head reads, [B, T, D], with the new cache and the trace.

        key: for a family that draws random numbers in training (`stochastic`); the others have no use for it.
        """
        refuse_unknown_clamps(intervention, self.clamp_sites, len(self.layers), self.act_sites)
        if intervention and intervention.acts:
            intervention, key = apply.prepare_intervention(intervention, cache, key)
            if intervention.at("S3"):
                return apply.run_token_by_token(self, tokens, cache, intervention, resets, lengths, key)
        trace: dict[str, Any] = {"intervention": intervention.describe()} if intervention else {}
        if lengths is not None:
            # A chunk of a longer prompt may end before a row does, or begin after it ended.
            lengths = mx.clip(lengths, 0, tokens.shape[1])
        (x, carried), new = self.enter(tokens, cache, resets, lengths, key), []
        for i in range(len(self.layers)):
            entry = [None if cache is None else cache[i][j] for j in range(len(self.slots_of(i)))]
            y, entry, carried, own = self.runner(i, intervention)(x, entry, carried, resets, lengths)
            x = clamp_output(x, y, intervention, i)
            new.append(entry)
            trace |= {f"block{i:02d}/{name}": value for name, value in own.items()}
        if intervention and intervention.acts:
            return apply.apply_before_head(self, x, intervention, trace), new, trace
        return self.finish(x), new, trace

    def embed(self, tokens: mx.array) -> mx.array:
        """Shapes: [B, T] -> [B, T, D]."""
        refuse_missing_method(self, "embed")

    def finish(self, x: mx.array) -> mx.array:
        """What the head reads of the stream. Shapes: [B, T, D] -> [B, T, D]."""
        refuse_missing_method(self, "finish")

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        refuse_missing_method(self, "project")

    def enter(self, tokens, cache, resets, lengths, key):
        """The stream and what is carried beside it, as the first block gets them."""
        return self.embed(tokens), None

    def runner(self, i: int, intervention: Intervention | None):
        """Block i as a function; a family whose blocks hold clamps of their own binds them here."""
        block = self.layers[i]
        inside = intervention.inside(i) if intervention and "S2" in self.act_sites else None
        run = partial(block, inside=inside) if inside else block
        if self.checkpoint_blocks:
            return checkpoint(block, leave_out_states(run) if self.checkpoint_means else run)
        return run

    def state_view(self, entry: list) -> mx.array:
        """The state in a cache entry as vectors whose equal parts are the units. Shapes: -> [B, C]."""
        return entry[self.slots.index("state")].reshape(entry[0].shape[0], -1)

    def with_state(self, entry: list, view: mx.array) -> list:
        """The inverse of `state_view`: the entry with this state."""
        i = self.slots.index("state")
        return [*entry[:i], view.reshape(entry[i].shape).astype(entry[i].dtype), *entry[i + 1 :]]

    def perturb_state(self, view: mx.array, noise: mx.array) -> mx.array:
        """A state view after noise of the same shape."""
        return view + noise

    def slots_of(self, i: int) -> tuple[str, ...]:
        """The names of the arrays of block i's cache entry: `slots`, unless the blocks differ."""
        return self.slots

    def make_cache(self) -> Cache:
        """One entry per block, its arrays in the order of `slots_of`, None before the first token."""
        return [[None] * len(self.slots_of(i)) for i in range(len(self.layers))]

    @property
    def cast_predicate(self):
        """False for names that stay fp32 under a cast: decays, step sizes and what else sets the dynamics."""
        return lambda path: not path.endswith(self.fp32)

    @property
    def quant_predicate(self):
        """Quantise the wide projections; what sets the dynamics stays as it is."""
        return lambda path, module: not path.endswith(self.no_quant)


def leave_out_states(run: Callable) -> Callable:
    """A block whose trace, where it has means, has nothing that costs more than the block itself."""

    def run_lightly(*args, **kwargs):
        *found, trace = run(*args, **kwargs)
        if "mean_R" in trace:
            trace = {name: x for name, x in trace.items() if name == "state" or name.startswith("mean_")}
        return *found, trace

    return run_lightly


class Stack(RecurrentModel):
    """A model of `embedding`, `blocks`, `norm` and `head`, or the embedding again where there is no head."""

    blocks: list
    embedding: nn.Embedding
    norm: Callable[[mx.array], mx.array]
    head: nn.Linear

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.blocks

    def embed(self, tokens: mx.array) -> mx.array:
        return self.embedding(tokens)

    def finish(self, x: mx.array) -> mx.array:
        return self.norm(x)

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        return self.head(hidden) if "head" in self else self.embedding.as_linear(hidden)


def require_field(values: dict[str, Any], name: str, *others: str):
    """The value of a key that a configuration file must have, under one of its names.

    Raises: ConfigError that names the key.
    """
    for key in (name, *others):
        if values.get(key) is not None:
            return values[key]
    raise ConfigError(f"config.json has no {name!r}, which this architecture needs; is the file complete?")


def pick_given(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """The keys of a configuration file that are there; the rest keep their defaults."""
    return {name: values[name] for name in names if name in values}


def refuse_unless(values: dict[str, Any], key: str, *supported) -> None:
    """Raise ConfigError where a configuration file asks for something that would be computed differently."""
    if key in values and values[key] not in supported:
        known = " or ".join(map(repr, supported))
        raise ConfigError(
            f"config.json has {key} = {values[key]!r}; this architecture is implemented for {known}"
        )


def orthogonal(key: mx.array, rows: int, columns: int, gain: float = 1.0) -> mx.array:
    """Orthonormal rows or columns, whichever are fewer, times `gain`. Shapes: [rows, columns]."""
    tall = mx.random.normal((max(rows, columns), min(rows, columns)), key=key)
    q, r = mx.linalg.qr(tall, stream=mx.cpu)
    q = q * mx.sign(mx.diagonal(r))
    return gain * (q if rows >= columns else q.T)
