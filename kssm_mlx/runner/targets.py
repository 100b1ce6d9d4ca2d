"""What `kssm verify` looks at: a recipe, a run folder, weights, a model of one's own, or runs to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from kssm_mlx.checks.core import evidence
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import flatten
from kssm_mlx.runner.own_model import open_own_model
from kssm_mlx.runner.prepare import open_run_context, prepare_recipe_context
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.runs.layout import is_run
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.constraints import build_constraints
from kssm_mlx.training.recipe import Recipe


def open_targets(targets: Sequence[str | Path], model: str | None = None) -> Context:
    """One context of them all: of several run folders the arm of the first is the `baseline`, the others are
    `runs`; of a single arm all are `runs`.

    model: `module:callable`, see own_model.py; alone, or read with the data of the recipe or run.
    Raises: ConfigError for nothing to look at, and for what cannot be compared.
    """
    if not targets and not model:
        raise ConfigError("kssm verify needs a recipe, a run folder, weights or --model module:callable")
    contexts = [_open_target(target) for target in targets]
    if len(contexts) > 1:
        return _compare_runs(targets, contexts, model)
    return _with_model(contexts[0] if contexts else Context(), model) if model else contexts[0]


def recipes_among(targets: Sequence[str | Path]) -> list[Recipe]:
    """The recipes among the targets. Raises: ConfigError for one that does not exist."""
    return [recipes.load(target) for target in targets if kind_of_target(target) == "recipe"]


def kind_of_target(target: str | Path) -> Literal["run", "recipe", "weights"]:
    """What a name on the command line means; what is nothing of the kind counts as a recipe."""
    path = Path(target).expanduser()
    if is_run(path):
        return "run"
    named = str(target) in {**recipes.list_shipped(), **recipes.list_failures()} or path.suffix == ".toml"
    return "weights" if not named and (path.exists() or "/" in str(target)) else "recipe"


def _open_target(target: str | Path) -> Context:
    """Raises: ConfigError for what is nothing of the kind, with the nearest recipe."""
    kind = kind_of_target(target)
    if kind == "run":
        return open_run_context(Path(target).expanduser())
    return _open_weights(target) if kind == "weights" else prepare_recipe_context(target)


def _open_weights(source: str | Path) -> Context:
    """A trained model and its tokenizer, verified L0 to L3; without a recipe and without data."""
    opened = open_model(source)
    return Context(
        model=opened.model,
        config=opened.model.args,
        tokenizer=opened.tokenizer,
        base_digest=opened.digest,
        base_notes=opened.notes,
    )


def _compare_runs(targets: Sequence[str | Path], contexts: list[Context], model: str | None) -> Context:
    if others := [str(t) for t in targets if not is_run(Path(t).expanduser())]:
        raise ConfigError(f"only run folders can be compared; {others[0]} is none: verify it alone")
    if model:
        raise ConfigError("--model is looked at alone or with one recipe or run, not with several")
    first, *others = evidence.group_contexts(contexts).values()
    runs = [run for arm in others for run in arm]
    return replace(contexts[0], runs=runs or first, baseline=first if runs else None)


def _with_model(context: Context, spec: str) -> Context:
    """The context with this model in place of its own, which has had none of its steps."""
    own = open_own_model(spec)
    held = build_constraints(context.recipe, own.model) if context.recipe else None
    return replace(
        context,
        model=own.model,
        config=own.config,
        tokenizer=own.tokenizer or context.tokenizer,
        initial=flatten(own.model.trainable_parameters()),
        history=None,
        base_digest=own.base_digest,
        base_notes=own.base_notes,
        intervention=held and held.intervention,
        masks=held.masks if held else {},
        builder=own.builder,
    )
