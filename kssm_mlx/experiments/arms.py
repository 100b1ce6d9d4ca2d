"""From a design to the runs it asks for: arms by name, each a recipe, and what must be equal between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.experiments.design import Arm, Design
from kssm_mlx.experiments.match_size import count_parameters, match_parameters, require_model
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.recipe_sections import Model

TOLERANCE = 0.01  # of what is equal between arms


@dataclass(frozen=True)
class Variant:
    """One arm with one combination of the grid. settings: dotted keys of the recipe; match: its size."""

    name: str
    recipe: str
    settings: Mapping[str, Any]
    match: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def list_variants(design: Design) -> list[Variant]:
    """The arms, each with every combination of [grid]. Raises: ConfigError for names that meet."""
    arms = design.arms or {design.run.recipe: Arm()}
    found = []
    for name, arm in arms.items():
        unset = dict.fromkeys([*design.run.unset, *arm.unset], recipes.UNSET)
        shared = {**unset, **flatten_settings(design.run.set), **flatten_settings(arm.set)}
        for combination in combinations(design.grid):
            label = ", ".join([name] * bool(design.arms) + [label_of(combination)] * bool(combination))
            recipe, match = arm.recipe or design.run.recipe, arm.match or design.run.match
            found.append(Variant(label or name, recipe, {**shared, **combination}, match, arm.options))
    names = [variant.name for variant in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"two arms are called {max(names, key=names.count)!r}; rename one")
    return found


def combinations(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each setting. Raises: ConfigError for a setting without values."""
    if empty := [key for key, values in grid.items() if not values]:
        raise ConfigError(f"grid: {empty[0]} has no values; give one or more")
    return (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))


def label_of(settings: Mapping[str, Any]) -> str:
    """{"train.learning_rate": 1e-3} -> "learning_rate=0.001"."""
    return ", ".join(f"{key.rpartition('.')[2]}={_shorten_value(value)}" for key, value in settings.items())


def _shorten_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"kappa": 1}, "train.steps": 4} -> {"model.kappa": 1, "train.steps": 4}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict) and value  # an empty table is a value
        flat |= flatten_settings(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def resolve_recipe(
    design: Design, variant: Variant, seed: int, extra: Mapping[str, Any] = {}, *, smoke: bool = False
) -> Recipe:
    """The recipe of one run. extra: what `select` chose, or what its runs change.

    Raises: ConfigError naming the arm for a recipe that cannot be used.
    """
    settings = {**variant.settings, **extra, "train.seed": seed}
    try:
        if smoke:  # the smoke form wins where both say something: that is what makes it tiny
            tiny = flatten_settings(recipes.load(variant.recipe, smoke=True).smoke)
            settings = {k: v for k, v in settings.items() if k not in tiny or v is recipes.UNSET}
            settings |= flatten_settings(design.smoke.set)
        recipe = recipes.load(variant.recipe, settings, smoke=smoke)
        target = design.smoke.match if smoke else variant.match
        recipe = match_parameters(recipe, target) if target else recipe
        require_model(recipe)
        return recipe
    except ConfigError as e:
        raise ConfigError(f"arm {variant.name!r}: {e}") from None


def require_equal(design: Design, recipes_by_arm: Mapping[str, Recipe]) -> None:
    """Raises: ConfigError naming two arms that differ in what [run] equal says is the same."""
    for what in design.run.equal:
        sizes = {name: measure_size(recipe, what) for name, recipe in recipes_by_arm.items()}
        known = {name: size for name, size in sizes.items() if size is not None}
        if not known:
            continue
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        if known[high] > known[low] * (1 + TOLERANCE):
            raise ConfigError(
                f"the arms differ in {what}, which run.equal says is the same: {low!r} has {known[low]:,}, "
                f"{high!r} has {known[high]:,}; make them equal or take {what!r} out of run.equal"
            )


def require_different(variants: Sequence[Variant], recipes_by_arm: Mapping[str, Recipe]) -> None:
    """Raises: ConfigError naming two arms of the same settings, whose difference would be one of chance.

    recipes_by_arm: what the arms train; without them the settings are compared as they are written.
    """
    seen: list[tuple[str, Any]] = []
    for variant in variants:
        recipe = recipes_by_arm.get(variant.name)
        trained = recipe.model_dump(exclude={"about"}) if recipe else (variant.recipe, variant.settings)
        made_of = (trained, variant.match, variant.options)
        if same := next((name for name, other in seen if other == made_of), None):
            raise ConfigError(
                f"arms {same!r} and {variant.name!r} have the same settings; change one of them"
            )
        seen.append((variant.name, made_of))


def measure_size(recipe: Recipe, what: str) -> int | None:
    """Parameters, tokens, steps or estimated FLOPs of a run; None where its parameters are not ours."""
    train = recipe.train
    tokens = train.steps * train.batch_size * train.context
    if what == "steps":
        return train.steps
    if what == "tokens":
        return tokens
    if not isinstance(recipe.model, Model):
        return None
    parameters = count_parameters(recipe)
    return parameters if what == "parameters" else 6 * parameters * tokens  # 2 a token forward, 4 backward


def require_known_arms(design: Design, variants: list[Variant]) -> None:
    """Raises: ConfigError for a claim about an arm that there is not."""
    names = [variant.name for variant in variants]
    for claim in design.claim:
        for arm in (claim.arm, claim.against):
            if arm is not None and arm not in names:
                raise ConfigError(
                    f"claim {claim.says or claim.rule!r}: no arm {arm!r}{nearest(arm, names)}; "
                    f"arms are {', '.join(names)}"
                )
