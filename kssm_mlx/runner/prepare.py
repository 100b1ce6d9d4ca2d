"""Data and model before the first step: of a new run, of one that goes on, of a recipe or a run looked at.

What cannot begin or continue is refused before anything in the run's folder changes.
"""

from __future__ import annotations

import atexit
import contextlib
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from kssm_mlx import models
from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.data.batches import evaluation_windows, random_batch, track_batch
from kssm_mlx.data.corpora.sources import parse_source
from kssm_mlx.data.mixtures import refuse_many_epochs
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tasks import PREFIX
from kssm_mlx.data.tokenizers.factory import require_known_tokenizer
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import ConfigError, DataError
from kssm_mlx.models.base import flatten
from kssm_mlx.runner.failures import break_context
from kssm_mlx.runner.folder import drop_keys, read_base_digest, read_run_recipe
from kssm_mlx.runner.initial_model import (
    InitialModel,
    build_initial_model,
    configure_fresh,
    load_trained_parameters,
    rebuild_initial_model,
)
from kssm_mlx.runner.run_checks import select_probes
from kssm_mlx.runs.arms import METADATA_SECTIONS
from kssm_mlx.runs.layout import CHECKPOINTS, is_run
from kssm_mlx.runs.records import read_manifest, read_metrics, read_recipe
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.checkpoints import checkpoint, identity
from kssm_mlx.training.constraints import build_constraints
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.recipe_sections import Pretrained
from kssm_mlx.training.state import from_arrays, initial_state

VOCABULARY = 256  # of a model whose text is not read yet


def require_known_names(recipe: Recipe, waivers: dict[str, str]) -> None:
    """Before any text or model is read.

    Raises: ConfigError for a check, a source, a tokenizer or a key of the model that there is not.
    """
    suite.require_known_waivers(waivers)
    select_probes(recipe.eval.checks)
    if not isinstance(recipe.model, Pretrained):
        configure_fresh(recipe, recipe.model.overrides.get("vocab_size", VOCABULARY))
    if recipe.data.source.startswith(PREFIX):
        return
    for source in recipe.data.sources or (recipe.data,):
        parse_source(source.source)
    require_known_tokenizer(recipe.data.tokenizer)


def prepare_data(recipe: Recipe, folder: Path, resume: bool, allow_change: bool) -> TokenData:
    """The token files of a run. What cannot begin or continue is refused before anything in `folder` changes.

    A run goes on with the ids it began with, whatever became of their source.
    """
    if not resume:
        return prepare(recipe.data, folder / "data")
    kept = _reopen_data(recipe, folder)
    if found := _list_changes(recipe, folder):
        if not allow_change:
            raise ConfigError(
                f"the recipe is not the one {folder} began with: {'; '.join(found)}; "
                "put it back, or pass --allow-config-change"
            )
        _check_resumable(recipe, folder, kept)
    return kept or prepare(recipe.data, folder / "data")


def _list_changes(recipe: Recipe, folder: Path) -> list[str]:
    """One phrase per key of the recipe that is not as the run in `folder` has it."""
    if not is_run(folder):
        return []
    # Read as a recipe, so that keys which a later version added have their defaults.
    then = identity.flatten_keys(drop_keys(read_run_recipe(folder).model_dump(), *METADATA_SECTIONS))
    return identity.list_differences(
        then, identity.flatten_keys(drop_keys(recipe.model_dump(), *METADATA_SECTIONS))
    )


def _reopen_data(recipe: Recipe, folder: Path) -> TokenData | None:
    """The run's own token files, if they are what the recipe asks for and can be opened."""
    if not is_run(folder) or any(phrase.startswith("data.") for phrase in _list_changes(recipe, folder)):
        return None
    with contextlib.suppress(DataError):
        return TokenData.open(folder / "data")
    return None


def _check_resumable(recipe: Recipe, folder: Path, kept: TokenData | None) -> None:
    """Raises: CheckpointError if the run's last checkpoint cannot go on under a changed recipe."""
    latest = checkpoint.load_latest(folder / CHECKPOINTS)
    if latest is None:
        return
    saved = latest.snapshot
    with tempfile.TemporaryDirectory(prefix="kssm-resume-") as elsewhere:
        data = kept or prepare(recipe.data, elsewhere)
        model = build_initial_model(recipe, data, base_digest=read_base_digest(folder)).model
        identity.require_unchanged(
            saved.state["identity"], identity.describe_identity(model, recipe, data), allow=True
        )
        trained = saved.tensors.get(recipe.model.trained_file, {})
        restored = from_arrays(trained, saved.tensors["optimizer"])
        identity.require_same_parameters(restored, initial_state(model, recipe.train))


def prepare_context(recipe: Recipe, folder: Path, data: TokenData, base_digest: str | None = None) -> Context:
    """Data and model before the first step; `base_digest` is that which the run's base model must have."""
    _refuse_unusable(data, recipe)
    return _make_context(recipe, folder, data, build_initial_model(recipe, data, base_digest=base_digest))


def _make_context(recipe: Recipe, folder: Path, data: TokenData, began: InitialModel) -> Context:
    # A learned initial state is of a document's beginning; a window from its middle would teach it another.
    data = data.cut_at_documents(recipe.train.context) if recipe.reads_beginnings else data
    held = build_constraints(recipe, began.model)
    context = Context(
        model=began.model,
        config=began.model.args,
        recipe=recipe,
        data=data,
        tokenizer=data.tokenizer,
        initial=flatten(began.model.trainable_parameters()),
        run_folder=folder,
        base_digest=began.base_digest,
        base_notes=began.base_notes,
        intervention=held.intervention,
        masks=held.masks,
        builder=None if began.base_digest else partial(models.build, began.model.args),
    )
    return break_context(context) if recipe.failure else context


def _refuse_unusable(data: TokenData, recipe: Recipe) -> None:
    """Raises: DataError when a split cannot fill one batch of training or one window of evaluation, or the
    tokenizer cannot read the prompt: minutes before it would show.
    """
    train, tokens = recipe.train, recipe.eval.tokens
    draw = track_batch if train.hand_off else partial(random_batch, seed=train.seed)
    draw(data.train, step=0, batch_size=train.batch_size, context=train.context)
    rows = train.steps * train.batch_size
    refuse_many_epochs(data.train.parts, train.seed, rows, train.context)
    evaluation_windows(data.validation, tokens, train.context, train.batch_size)
    try:
        data.tokenizer.encode(recipe.eval.prompt)
    except DataError as e:
        raise DataError(f"eval.prompt: {e}") from None


def prepare_recipe_context(target: str | Path) -> Context:
    """A recipe's context in a folder that goes away when the process ends."""
    recipe = recipes.load(target)
    temporary = tempfile.TemporaryDirectory(prefix="kssm-verify-")
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name)
    return prepare_context(recipe, folder, prepare(recipe.data, folder / "data"))


def open_run_context(folder: Path) -> Context:
    """A run's recipe, its initial parameters and, once there is a checkpoint, the trained ones."""
    recipe, data = read_run_recipe(folder), TokenData.open(folder / "data")
    context = _make_context(recipe, folder, data, rebuild_initial_model(recipe, data, read_recipe(folder)))
    latest = checkpoint.load_latest(folder / CHECKPOINTS)
    if latest:
        load_trained_parameters(context.model, latest.snapshot.tensors[recipe.model.trained_file])
    return replace(context, manifest=read_manifest(folder), history=read_metrics(folder) if latest else None)
