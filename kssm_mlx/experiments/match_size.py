"""Arms of equal size: the width of a model that gives it a number of parameters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

from kssm_mlx import models
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.errors import ConfigError
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.recipe_sections import Data, Model

TOLERANCE = 0.01  # of the number asked for
WIDEST = 1 << 16


def match_parameters(recipe: Recipe, target: int) -> Recipe:
    """The recipe with the width of its model, and then one finer key, set so that it has `target` parameters.

    Raises: ConfigError for a model whose width cannot be chosen, or that cannot be brought within 1 %.
    """
    section = recipe.model
    if not isinstance(section, Model):
        raise ConfigError("run.match is for fresh models; the size of pretrained weights cannot be chosen")
    family = models.FAMILIES.get(section.family)
    if family is None or family.width is None:
        known = ", ".join(name for name, f in models.FAMILIES.items() if f.width)
        raise ConfigError(f"run.match knows no width of model.family {section.family!r}; it does of {known}")
    key, step = family.width
    # A part that the recipe switched off by 0 stays off.
    fine = next((k for k in family.fine if (section.model_extra or {}).get(k) != 0), None)
    if "n_groups" in (key, fine) and (section.model_extra or {}).get("dimensions"):
        raise ConfigError(
            "model.dimensions says how many populations there are, so run.match cannot choose n_groups; "
            "leave match out, and give the arm its sizes"
        )

    def size(overrides: dict[str, Any]) -> int:
        return count_parameters(recipes.override(recipe, {f"model.{k}": v for k, v in overrides.items()}))

    # The width first, in whole steps; what is left to the target by a key that is finer than a step.
    chosen = {key: step * _find_nearest(lambda n: size({key: n * step}), target, WIDEST // step)}
    if fine and abs(size(chosen) / target - 1) > TOLERANCE / 2:
        chosen[fine] = _find_nearest(lambda n: size({**chosen, fine: n}), target, WIDEST)
    found = size(chosen)
    if abs(found / target - 1) > TOLERANCE:
        raise ConfigError(
            f"no {key} brings a {section.family} within 1 % of {target:,} parameters; the nearest has "
            f"{found:,}: change the number of layers, or run.match"
        )
    return recipes.override(recipe, {f"model.{k}": v for k, v in chosen.items()})


def require_model(recipe: Recipe) -> None:
    """Raises: ConfigError for keys that the family of a fresh model does not know; no data is read."""
    if isinstance(recipe.model, Model):
        _configure(recipe.model, 256, recipe.train.context)


def count_parameters(recipe: Recipe) -> int:
    """Of a fresh model of the recipe, with the vocabulary of its data. Raises: ConfigError, DataError."""
    section = recipe.model
    assert isinstance(section, Model)
    vocab_size = _vocabulary(recipe.data.model_dump_json())
    return _count(section.model_dump_json(), vocab_size, recipe.train.context)


@cache
def _count(section: str, vocab_size: int, context: int) -> int:
    return models.count_parameters(_configure(Model.model_validate_json(section), vocab_size, context))


def _configure(model: Model, vocab_size: int, context: int) -> Any:
    return models.configure(
        model.family, model.size, vocab_size=vocab_size, context=context, overrides=model.overrides
    )


@cache
def _vocabulary(section: str) -> int:
    """How many tokens the data of a recipe knows; some tokenizers tell only after reading the text."""
    with tempfile.TemporaryDirectory(prefix="kssm-vocabulary-") as folder:
        return prepare(Data.model_validate_json(section), folder).vocab_size


def _find_nearest(size: Callable[[int], int], target: int, most: int) -> int:
    """The n from 1 to `most` whose size is closest to the target; sizes rise with n."""
    # By halves: to count a model takes milliseconds to seconds, and there are 65,536 widths.
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= target else (low, middle)
    return min((low, high), key=lambda n: abs(size(n) - target))
