"""What was broken in the published runs that failed, where no key of a recipe can break it.

`[failure] breaks = "random-logits"` in a recipe of recipes/failures/ does to the run's data and model, before
step 1, what was done to them then. Most of those runs need nothing of this: their defect is an option.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx import files, models
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.data.tokenizers.plain import CharTokenizer
from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.models.base import LanguageModel

Breakage = Callable[[Context], Context]
FAILURES: dict[str, Breakage] = {}


def register_failure(name: str) -> Callable[[Breakage], Breakage]:
    """Register a breakage under the name that recipes call it by."""

    def register(breaks: Breakage) -> Breakage:
        FAILURES[name] = breaks
        return breaks

    return register


def break_context(context: Context) -> Context:
    """The context with what its recipe's [failure] breaks. Raises: ConfigError for an unknown breakage."""
    name = context.recipe.failure.breaks
    if name and name not in FAILURES:
        raise ConfigError(
            f"failure.breaks: no {name!r}{nearest(name, FAILURES)}; known: {', '.join(FAILURES)}"
        )
    return FAILURES[name](context) if name else context


def recast_model(model: Any, *defects: type) -> Any:
    """The same object and parameters, with the methods of `defects` before those of its class."""
    model.__class__ = type(defects[0].__name__, (*defects, type(model)), {})
    return model


@register_failure("weights-never-loaded")
def weights_never_loaded(context: Context) -> Context:
    """The loader is a stub: what the base model's files hold never reaches the model that is trained on."""
    base = getattr(context.model, "host", context.model)
    base.update(models.build(base.args, seed=1).parameters())
    return context


@register_failure("random-logits")
def random_logits(context: Context) -> Context:
    """The hidden states are drawn, and so are the logits; the parameters have no part in them."""
    recast_model(context.model, RandomLogits)
    return context


class RandomLogits(LanguageModel):
    def forward(self, tokens, *args, **options):
        out = super().forward(tokens, *args, **options)
        return out._replace(logits=mx.random.normal(out.logits.shape))


@register_failure("other-tokenizer")
def other_tokenizer(context: Context) -> Context:
    """The ids are of one tokenizer (GPT-2), the trainer embeds and decodes with another (cl100k)."""
    characters = "".join(map(chr, range(0x100, 0x100 + 2 * context.data.vocab_size)))
    return replace(context, tokenizer=CharTokenizer(characters))


@register_failure("npy-header")
def npy_header(context: Context) -> Context:
    """The corpus tool saves ids with np.save; the trainer maps the file raw, header and all."""
    file = BytesIO()
    np.save(file, np.asarray(context.data.train.ids))
    files.replace(context.data.folder / "train.bin", file.getvalue())
    return context
