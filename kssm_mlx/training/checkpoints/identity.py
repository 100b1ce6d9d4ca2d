"""What a run is, apart from its state: whoever continues one must mean the same run.

`describe_identity` goes into every checkpoint. On resume `require_unchanged` names what differs now, key by
key, and refuses it unless it was allowed; another tokenizer is refused always, because the ids would mean
other text, and another optimizer, because it keeps another state.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import MISSING, asdict, fields
from typing import Any

import mlx.core as mx
from pydantic import BaseModel

from kssm_mlx import __version__, _blas
from kssm_mlx import environment as facts
from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.models import FAMILIES
from kssm_mlx.models.base import flatten
from kssm_mlx.runs.arms import METADATA_SECTIONS
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.state import TrainState

OPTIMIZER = "train.optimizer"


def describe_identity(model: Any, recipe: Recipe, data: Any) -> dict[str, Any]:
    """The recipe without its words, the model's configuration, the data and the tokenizer."""
    table = recipe.model_dump(exclude=set(METADATA_SECTIONS))
    # What 0.1.0 did not have is no part of a run that has none of it: its hash stays comparable.
    table = {name: part for name, part in table.items() if part or name not in ("phase", "curriculum")}
    if "base" in table["model"]:
        # The name that it had in 0.1.0: checkpoints of then go on, and their hashes stay comparable.
        table["model"]["host"] = table["model"].pop("base")
    config = {
        **table,
        "configuration": asdict(model.args),
        "files": {name: entry["sha256"] for name, entry in data.index["files"].items()},
    }
    config = flatten_keys(config)
    return {
        "config": config,
        "config_hash": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "tokenizer": {"digest": data.tokenizer.digest, "vocab_size": data.vocab_size},
    }


def require_unchanged(then: dict[str, Any], now: dict[str, Any], *, allow: bool) -> list[str]:
    """One phrase per difference between two identities.

    Raises: CheckpointError for another tokenizer or optimizer; ConfigError for any difference unless `allow`.
    """
    if then["tokenizer"] != now["tokenizer"]:
        raise CheckpointError(
            f"the run was trained with {_tokenizer(then)}, the data now has {_tokenizer(now)}; "
            "resume with the run's own tokenizer, or start a new run"
        )
    if then["config_hash"] == now["config_hash"]:
        return []
    if (before := then["config"].get(OPTIMIZER, "adamw")) != now["config"][OPTIMIZER]:
        raise CheckpointError(
            f"the run was trained with {OPTIMIZER} = {before!r}, is now to go on with "
            f"{now['config'][OPTIMIZER]!r}, which keeps another state; put it back, or start a new run"
        )
    found = list_differences({**_added_since(then["config"], now["config"]), **then["config"]}, now["config"])
    if not found:
        return []
    if not allow:
        raise ConfigError(
            f"the recipe is not the one this run began with: {'; '.join(found)}; "
            "put it back, or pass --allow-config-change"
        )
    return found


def describe_environment(processes: int = 1) -> dict[str, Any]:
    """What bitwise equality depends on besides the recipe; processes: that train together."""
    return {
        **({"processes": processes} if processes > 1 else {}),
        "kssm_mlx": __version__,
        "python": platform.python_version(),
        "mlx": vars(mx)["__version__"],  # a name that its type stubs leave out
        "device": mx.default_device().type.name,
        "blas": _blas.status().library,
        "MLX_ENABLE_TF32": facts.tf32(),
        "switches": {name: os.environ[name] for name in facts.SWITCHES if name in os.environ},
    }


def list_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One phrase for each key whose values are not equal."""
    keys = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k))
    return [f"{k} was {then.get(k)!r}, is now {now.get(k)!r}" for k in keys]


def _added_since(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Keys that a later version added to a section, by the value they have unless they are set."""
    sections = {name: info.default for name, info in Recipe.model_fields.items()}
    plain = flatten_keys({n: d.model_dump() for n, d in sections.items() if isinstance(d, BaseModel)})
    plain |= _defaults_of(now.get("configuration.model_type"))
    return {key: value for key, value in plain.items() if key not in then and key in now}


def _defaults_of(family: Any) -> dict[str, Any]:
    """The keys of a family's configuration that need not be set, with their values."""
    if family not in FAMILIES:
        return {}
    _, config, _ = FAMILIES[family].load()
    plain = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    return flatten_keys({"configuration": plain})


def require_same_parameters(restored: TrainState, fresh: TrainState) -> None:
    """Raises: CheckpointError when a checkpoint's parameters do not fit the model that is to go on."""
    new = {n: a.shape for n, a in flatten(fresh.params).items()}
    for tree in (restored.evaluated, restored.params):
        _require_shapes({n: a.shape for n, a in flatten(tree).items()}, new)


def _require_shapes(old: dict[str, tuple[int, ...]], new: dict[str, tuple[int, ...]]) -> None:
    if differing := sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n)):
        name = differing[0]
        raise CheckpointError(
            f"parameter {name} has shape {old.get(name)} in the checkpoint and {new.get(name)} in the model "
            f"({len(differing)} differ); another model cannot continue this run: start a new one"
        )


def carry_fits(carry: list | None, recipe: Recipe) -> bool:
    """Whether a handed-off state belongs to the tracks this recipe reads."""
    rows = {array.shape[0] for array in flatten(carry).values() if isinstance(array, mx.array)}
    return recipe.train.hand_off and rows == {recipe.train.batch_size}


def _tokenizer(of: dict[str, Any]) -> str:
    tokenizer = of["tokenizer"]
    return f"tokenizer {tokenizer['digest'][:12]} of {tokenizer['vocab_size']} tokens"


def flatten_keys(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"steps": 5}} -> {"train.steps": 5}, as it reads back from JSON, infinity as a word."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten_keys(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = json.loads(json.dumps(value), parse_constant=str)
    return flat
