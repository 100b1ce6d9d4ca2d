"""Our models as contenders: prefill, a training step, and tokens one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx import models
from kssm_mlx.bench.measure import Contender, arrays
from kssm_mlx.models.base import LanguageModel, flatten
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Shape:
    """What all contenders of a model case share; fp32, a state of 16 (Mamba) or 64 (Mamba-2, RWKV-7)."""

    width: int = 256
    layers: int = 4
    vocabulary: int = 1024
    batch: int = 4

    def tokens(self, T: int, batch: int | None = None) -> mx.array:
        shape = (batch or self.batch, T)
        return mx.random.randint(0, self.vocabulary, shape, key=mx.random.key(T))


def build(family: str, shape: Shape, **more: Any) -> LanguageModel:
    """A fresh model of this family and shape."""
    overrides = {**_overrides(family, shape), **more}
    return models.build(
        models.configure(family, "xs", vocab_size=shape.vocabulary, overrides=overrides, context=512)
    )


def _overrides(family: str, shape: Shape) -> dict[str, Any]:
    if family == "kssm":
        return {"d_model": shape.width, "n_layers": shape.layers}
    common = {"hidden_size": shape.width, "num_hidden_layers": shape.layers}
    return {**common, **models.FAMILIES[family].bench(shape.width)}


def in_bits(model: Model, bits: int | None) -> Model:
    """The model with its wide projections in groups of 64 weights of so many bits; as it is for None."""
    if bits:
        nn.quantize(model, group_size=64, bits=bits, class_predicate=_is_quantizable(model))
    return model


def _is_quantizable(model: nn.Module):
    """What may be quantised: what the model says, and no row that a group of 64 does not divide."""
    allowed = getattr(model, "quant_predicate", None) or (lambda path, module: True)
    fits = lambda module: hasattr(module, "to_quantized") and module.weight.shape[-1] % 64 == 0  # noqa: E731
    return lambda path, module: fits(module) and bool(allowed(path, module))


def parameters(model: LanguageModel) -> int:
    return sum(p.size for p in flatten(model.parameters()).values())


def prefill(model: LanguageModel, tokens: mx.array) -> Contender:
    """Logits of all tokens."""
    return arrays(mx.compile(lambda t: model.forward(t).logits), tokens)


def time_training(model: LanguageModel, tokens: mx.array) -> Contender:
    """One step of our trainer: loss, gradient, clip, AdamW. Shapes: tokens [B, T+1]."""
    train = Train(batch_size=tokens.shape[0], context=tokens.shape[1] - 1)
    step, state = make_step(model, train), [initial_state(model, train)]

    def run():
        state[0], metrics = step(state[0], tokens, None)
        mx.eval(state[0], metrics)

    return Contender(run)


def time_decoding(model: LanguageModel, batch: int, count: int) -> Contender:
    """`count` tokens, each the likeliest after the last, the state carried, one compiled call per token."""
    begun = model.forward(mx.zeros((batch, 8), mx.int32))
    start = begun.logits[:, -1:].argmax(-1), begun.cache
    mx.eval(start)

    @mx.compile
    def one(token, cache):
        out = model.forward(token, cache)
        return out.logits[:, -1:].argmax(-1), out.cache

    def run():
        token, cache = start
        for _ in range(count):
            token, cache = one(token, cache)
            mx.async_eval(token, cache)
        mx.eval(token)

    return Contender(run)
