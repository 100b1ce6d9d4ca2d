"""Our models inside mlx-lm: what an exported folder's `kssm_model.py` hands to its tools.

mlx-lm builds `Model(ModelArgs.from_dict(config))`, quantises and loads it, and then calls it as its own. The
one thing it must get from us is its own cache class: it merges, filters and saves caches in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from kssm_mlx import models
from kssm_mlx.models.base import LanguageModel
from kssm_mlx.weights.naming.configs import from_file


class ModelArgs:
    """mlx-lm's name for a configuration."""

    @staticmethod
    def from_dict(values: dict[str, Any]):
        """The configuration of a config.json. Raises: ConfigError for what it does not understand."""
        return from_file(values)


class WithArraysCache(LanguageModel):
    """Makes caches of mlx-lm's class, with as many slots as the model's own."""

    def make_cache(self) -> list[ArraysCache]:
        return [ArraysCache(size=len(entry)) for entry in super().make_cache()]


def Model(config) -> nn.Module:
    """The model of a configuration, with mlx-lm's caches; freshly initialised, for mlx-lm to load."""
    return _with_their_caches(models.FAMILIES[models.family_of(config)].load()[2])(config)


@cache
def _with_their_caches(model_class: type[nn.Module]) -> Callable[..., nn.Module]:
    return type(model_class.__name__, (WithArraysCache, model_class), {})


def peer(family: str, values: dict[str, Any]) -> nn.Module:
    """mlx-lm's own model of a family, such as "mamba", freshly initialised: what ours is measured beside."""
    module = import_module(f"mlx_lm.models.{family}")
    return module.Model(module.ModelArgs(model_type=family, **values))
