"""A model ready to use, of a run folder, a checkpoint, a folder of weights or a repository on the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from kssm_mlx.data.tokens import TokenData
from kssm_mlx.digest import root_digest, tensor_digest
from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.generation.initial_state import load_initial_state
from kssm_mlx.models.base import Trained
from kssm_mlx.models.interventions.calibration import ModelWithIntervention
from kssm_mlx.models.prompt_tuning import begin_text
from kssm_mlx.models.state_tuning import StateTuned
from kssm_mlx.runner.folder import read_run_recipe
from kssm_mlx.runner.initial_model import load_trained_parameters, rebuild_initial_model
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.runs.layout import find_run, pick_checkpoint
from kssm_mlx.runs.records import read_metrics, read_recipe
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.checkpoints.identity import describe_identity, list_differences
from kssm_mlx.training.constraints import build_constraints


def load(path: str | Path, *, verify: bool = True, dtype: mx.Dtype | None = None) -> Trained:
    """A model ready to use: of a run folder (its best checkpoint) or one checkpoint folder, of any folder or
    file with weights, or of a repository on the hub.

    Everything is verified and evaluated, nothing is read later: a run against its checkpoint's manifest,
    its base model by the verdict of `kssm verify-weights`, other weights by L0 to L3. verify: False takes a
    base model or other weights as they are, and says so in the notes. dtype: of other weights, see
    `open_model`.
    Raises: CheckpointError, WeightMismatch, ConfigError for what is missing, damaged or not a model.
    """
    folder = find_run(Path(path))
    if folder is None:
        return open_model(path, verify=verify, dtype=dtype)
    chosen = pick_checkpoint(folder) if folder == Path(path) else Path(path)
    recipe, data = read_run_recipe(folder), TokenData.open(folder / "data")
    began = rebuild_initial_model(recipe, data, read_recipe(folder), verify=verify)
    snapshot = checkpoint.load(chosen, stems=[recipe.model.trained_file])
    _require_own_checkpoint(folder, chosen, snapshot, describe_identity(began.model, recipe, data))
    trained = snapshot.tensors[recipe.model.trained_file]
    load_trained_parameters(began.model, trained)
    digest = digest_beside(trained, began.base_digest)
    notes = {**began.base_notes, "step": snapshot.step, "base_digest": began.base_digest}
    held = build_constraints(recipe, began.model).intervention
    model = ModelWithIntervention(began.model, held) if held else began.model
    return Trained(model, data.tokenizer, str(chosen), digest, notes)


def digest_beside(trained: dict[str, mx.array], base_digest: str | None) -> str:
    """The digest of a model: of what was trained in it, and of its base model where it has one."""
    digests = {name: tensor_digest(array) for name, array in trained.items()}
    return root_digest({**digests, **({"host": base_digest} if base_digest else {})})


def begin_with_state(trained: Trained, path: str | Path) -> Trained:
    """A model that begins every text with the state in a file that `kssm export --format state` wrote.

    Raises: CheckpointError for a file that is damaged, or of another model; ConfigError for a model that has
        a learned state already, or can have none.
    """
    if isinstance(trained.model, StateTuned):
        raise ConfigError(f"{trained.source} begins with a learned state of its own; give its base model")
    arrays = load_initial_state(path, trained.digest)
    model = begin_text(trained.model, len(arrays.get("prompt", ())))
    try:
        load_trained_parameters(model, arrays)
    except (CheckpointError, ValueError) as e:
        raise CheckpointError(f"{path} does not fit {trained.source}: {str(e).splitlines()[0]}") from None
    return replace(trained, model=model, digest=digest_beside(arrays, trained.digest))


def _require_own_checkpoint(
    folder: Path, chosen: Path, snapshot: checkpoint.Snapshot, own: dict[str, Any]
) -> None:
    """Raises: CheckpointError for a checkpoint that another run wrote, by what it says it is of.

    Where a change was allowed on the way, the older checkpoints of the run rightly differ in that.
    """
    then = snapshot.state.get("identity")
    if then is None:  # C32's rehearsal, which no loop wrote
        return
    now = {key: value for key, value in own["config"].items() if key in then["config"]}
    found = list_differences(then["config"], now)
    other = then["tokenizer"] != own["tokenizer"]
    if other or (found and not _was_changed(folder)):
        what = "; ".join(found[:3]) or "it was trained with another tokenizer"
        raise CheckpointError(
            f"{chosen} is of another run than {folder}: {what}; put the run's own checkpoint back"
        )


def _was_changed(folder: Path) -> bool:
    return any("allowed change" in str(row.get("message", row)) for row in read_metrics(folder))
