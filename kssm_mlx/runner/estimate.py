"""What a recipe, a run or a model needs: sums from shapes, and a peak and a time from steps really taken."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kssm_mlx import models
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.models.base import LanguageModel
from kssm_mlx.runner.base_model_cache import cache_folder
from kssm_mlx.runner.folder import read_run_recipe
from kssm_mlx.runner.initial_model import (
    adapt_base,
    build_initial_model,
    configure_fresh,
    rebuild_initial_model,
)
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.runner.targets import kind_of_target
from kssm_mlx.runs.records import read_recipe
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.budget import fit
from kssm_mlx.training.budget.measured import StepCost, measure_steps, predict_step
from kssm_mlx.training.budget.sums import (
    State,
    Sums,
    kept_checkpoints,
    product_flops,
    state_bytes,
    sum_bytes,
)
from kssm_mlx.training.constraints import Constraints, build_constraints
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.recipe_sections import Pretrained

# Of a shorter run the few steps that are measured would be a good part.
STEPS_WORTH_MEASURING = 200


@dataclass(frozen=True)
class Estimate:
    """recipe: None of a model that is not to be trained. flops: of products, per token, in a training step or
    a forward pass. costs: of the steps that were measured, none where nothing was.
    """

    name: str
    family: str
    recipe: Recipe | None
    sums: Sums
    state: State
    flops: int
    costs: tuple[StepCost, ...] = ()
    recomputes: bool = False

    @property
    def step(self) -> StepCost | None:
        """The predicted cost of a step of the recipe."""
        if self.recipe is None or not self.costs:
            return None
        return predict_step(self.costs, self.recipe.train, self.sums.least)

    @property
    def activations(self) -> float | None:
        """Bytes of the predicted peak that are neither weights nor optimizer nor gradients."""
        return self.step and self.step.peak - self.sums.least

    @property
    def checkpoints(self) -> tuple[int, int] | None:
        """Bytes on disk, at least and at most."""
        if self.recipe is None:
            return None
        least, most = kept_checkpoints(self.recipe)
        return least * self._checkpoint, most * self._checkpoint

    @property
    def _checkpoint(self) -> int:
        """Bytes of one; with the states of all rows where these are handed on."""
        train = self.recipe.train if self.recipe else None
        carry = self.state.first * train.batch_size if train and train.hand_off else 0
        return self.sums.checkpoint + carry


def estimate(target: str | Path, *, recipe: Recipe | None = None, measure: bool = True) -> Estimate:
    """The estimate of a shipped recipe, a TOML file, a run folder, or weights that are no run.

    recipe: what `target` names, read already. measure: False takes no step and leaves peak and time open.
    Raises: ConfigError, DataError as opening them does; ConfigError too for a recipe whose parameters alone
        are more than this machine holds, when steps are to be measured.
    """
    kind = kind_of_target(target)
    if kind == "weights" and recipe is None:
        return describe_model(str(target), open_model(target, verify=False).model)
    if kind == "run" and recipe is None:
        return _estimate_run(Path(target).expanduser(), measure)
    recipe = recipe or recipes.load(target)
    with tempfile.TemporaryDirectory(prefix="kssm-estimate-") as folder:
        data = prepare(recipe.data, Path(folder) / "data")
        return _estimate_recipe(str(target), recipe, data, measure)


def describe_model(name: str, model: LanguageModel) -> Estimate:
    """The estimate of a model that only predicts."""
    return Estimate(name, model.model_type, None, sum_bytes(model), state_bytes(model), product_flops(model))


def estimate_training(
    name: str,
    recipe: Recipe,
    model: LanguageModel,
    data: TokenData | None = None,
    held: Constraints | None = None,
    all_rows: bool = True,
) -> Estimate:
    """The estimate of training this model; of a model with computed parameters and `data` also by steps, the
    last of them with the rows of the recipe unless there is reason to fear it, or all_rows is False.
    """
    held = held or build_constraints(recipe, model)
    costs = measure_steps(recipe, model, data, held, all_rows=all_rows) if data else ()
    return Estimate(
        name=name,
        family=model.model_type,
        recipe=recipe,
        sums=sum_bytes(model, recipe.train),
        state=state_bytes(model),
        flops=product_flops(model, recipe.train),
        costs=costs,
        recomputes=hasattr(model, "checkpoint_blocks"),
    )


def _estimate_run(folder: Path, measure: bool) -> Estimate:
    recipe, data = read_run_recipe(folder), TokenData.open(folder / "data")
    # Sizes are the same whether or not the base model is good.
    model = rebuild_initial_model(recipe, data, read_recipe(folder), verify=False).model
    return estimate_training(str(folder), recipe, model, data if measure else None)


def _estimate_recipe(name: str, recipe: Recipe, data: TokenData, measure: bool) -> Estimate:
    if not isinstance(recipe.model, Pretrained):
        outline = models.outline(configure_fresh(recipe, data.vocab_size))
        # A step would end this process where not even the sums fit.
        if not measure or sum_bytes(outline, recipe.train).least > fit.there_is_memory():
            return estimate_training(name, recipe, outline)
    model = open_initial_model(recipe, data)
    return estimate_training(name, recipe, model, data if measure else None)


def open_initial_model(recipe: Recipe, data: TokenData) -> LanguageModel:
    """The model before the first step; on a fresh base model where a recipe has yet to train it."""
    section = recipe.model
    if isinstance(section, Pretrained) and section.recipe and not _is_here(section.recipe):
        return _stand_in(recipe, section, data)
    return build_initial_model(recipe, data, verify=False).model


def _is_here(name: str) -> bool:
    """Whether this recipe's base model was trained on this machine."""
    return (cache_folder(name) / "model").is_dir()


def _stand_in(recipe: Recipe, section: Pretrained, data: TokenData) -> LanguageModel:
    """Untrained, which changes no size."""
    host = configure_fresh(recipes.load(str(section.recipe)), data.vocab_size)
    return adapt_base(models.build(host, seed=recipe.train.seed), section, recipe.train.seed)


def refuse_fresh_model(recipe: Recipe, data: TokenData, folder: Path) -> None:
    """Before a fresh model is allocated. Raises: ConfigError for one whose training cannot fit."""
    if not isinstance(recipe.model, Pretrained):
        outline = models.outline(configure_fresh(recipe, data.vocab_size))
        _refuse(sum_bytes(outline, recipe.train), recipe, folder)


def announce(context: Context, folder: Path) -> list[str]:
    """What `kssm train` says before it begins: the estimate in one line, and a warning where it may not fit.

    A run of few steps is not measured first. Raises: ConfigError for what cannot fit.
    """
    recipe, model = context.recipe, context.model
    _refuse(sum_bytes(model, recipe.train), recipe, folder)
    data = context.data if recipe.train.steps >= STEPS_WORTH_MEASURING else None
    held = Constraints(context.masks, context.intervention, [])
    found = estimate_training(str(folder), recipe, model, data, held, all_rows=False)
    warn = partial(fit.warn_beyond_memory, found.sums, recipe, found.costs)
    warning = warn(fit.there_is_memory(), found.recomputes) if found.costs else ""
    return [in_one_line(found), *([warning] if warning else [])]


def _refuse(sums: Sums, recipe: Recipe, folder: Path) -> None:
    fit.refuse_beyond_memory(sums, recipe, fit.there_is_memory())
    fit.refuse_beyond_disk(sums, recipe, fit.there_is_disk(folder))


def in_one_line(found: Estimate) -> str:
    """Memory, disk and time of a run."""
    needs = f"{fit.show_bytes(found.sums.least)} of weights, optimizer, gradients"
    step, disk = found.step, found.checkpoints
    memory = f"peak about {fit.show_bytes(step.peak)}, {needs}" if step else needs
    parts = [memory, f"{fit.show_bytes(disk[1])} of checkpoints"] if disk else [memory]
    if step and found.recipe:
        parts.append(f"steps about {show_seconds(step.seconds * found.recipe.train.steps)} at today's pace")
    return f"estimate: {'; '.join(parts)}"


def show_seconds(seconds: float) -> str:
    """95 -> "1.6 min"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size * 1.5:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def to_json(found: Estimate) -> dict[str, Any]:
    """The estimate as plain values, sizes in bytes, times in seconds; None where nothing was measured."""
    step, disk = found.step, found.checkpoints
    return {
        "name": found.name,
        "family": found.family,
        "parameters": {"trained": found.sums.trained, "frozen": found.sums.frozen},
        "weights": found.sums.weights,
        "optimizer": found.sums.optimizer if found.recipe else None,
        "gradients": found.sums.gradients if found.recipe else None,
        "activations": found.activations,
        "peak": step and step.peak,
        "state_of_a_row": {"first_token": found.state.first, "each_further": found.state.growth},
        "checkpoints": disk and {"at_least": disk[0], "at_most": disk[1]},
        "flops_per_token": found.flops,
        "seconds_per_step": step and step.seconds,
        "measured": [cost._asdict() for cost in found.costs],
    }
