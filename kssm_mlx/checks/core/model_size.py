"""Checks of a model too large to be asked often: on its own weights while that is cheap, else on a small one.

A pre-flight check is registered with the number of forward passes it takes. Above `LARGE` parameters one that
takes more than `PASSES` runs on a fresh model of the same family and options, with the layers and widths of
size "xs"; the verdict says which. What such a check measures, as causality or reachability, is a property of
the code and the options, which the small model shares; what depends on the weights takes few passes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from kssm_mlx import models
from kssm_mlx.checks.core.registry import Context, Definition
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import flatten

LARGE = 1_000_000_000
PASSES = 8


def fit_context(definition: Definition, ctx: Context) -> tuple[Context, str]:
    """The context a check runs in, and what the verdict says about it: "" for a model of ordinary size."""
    if (
        definition.level != "P"
        or not definition.passes
        or ctx.model is None
        or count_parameters(ctx.model) < LARGE
    ):
        return ctx, ""
    own = f"its own weights, at most {definition.passes} forward passes"
    if definition.passes <= PASSES:
        return ctx, own
    small = reduce_model(ctx.config) if _trains_everything(ctx.model) else None
    if small is None:
        return ctx, f"{own}: there is no small model like it"
    model = _build_model(small, ctx.seed)
    note = f"a fresh model of {count_parameters(model):,} parameters with the same options"
    fresh = dict.fromkeys(("base_digest", "initial", "history", "run_folder", "manifest"))
    return replace(ctx, model=model, config=small, **fresh), note


def reduce_model(config: Any) -> Any | None:
    """The configuration with the layers and widths of size "xs"; None where the family has none that fits.

    A matter of size is what the sizes of the family differ in, and a width that they leave to be derived;
    everything else stays as it was.
    """
    family = getattr(config, "model_type", None)
    if family not in models.FAMILIES:
        return None
    own = models.config_to_dict(config)
    sizes = (models.configure(family, s, vocab_size=config.vocab_size) for s in ("xs", "l"))
    small, large = map(models.config_to_dict, sizes)
    if any(isinstance(value, dict) and value != large[n] for n, value in own.items()):
        return None  # options that no size has
    derived = {n for n, value in small.items() if value is None and type(own[n]) is int}
    changed = {n: value for n, value in small.items() if n in derived or value != large[n]}
    try:
        return models.config_from_dict({**own, **changed})
    except ConfigError:  # an option of the large one that the small widths do not divide into
        return None


def count_parameters(model: Any) -> int:
    """The number of parameters."""
    return sum(array.size for array in flatten(model.parameters()).values())


def _trains_everything(model: Any) -> bool:
    """False for adapters or additions beside a frozen base model, which no fresh model has."""
    return flatten(model.trainable_parameters()).keys() == flatten(model.parameters()).keys()


@lru_cache(maxsize=1)
def _build_model(config: Any, seed: int) -> Any:
    return models.build(config, seed)
