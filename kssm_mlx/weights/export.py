"""A model as a folder that other tools run: mlx-lm, and transformers where it has the architecture.

    mlx-lm   config.json with "model_file", kssm_model.py, model.safetensors in our names and shapes
    hf       config.json with "architectures", model.safetensors in the names and shapes of transformers

Both hold the tokenizer's files and generation_config.json. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from kssm_mlx import files
from kssm_mlx.errors import ConfigError
from kssm_mlx.models import FAMILIES
from kssm_mlx.models.adapters import DoRALinear, adapters_of
from kssm_mlx.models.base import LanguageModel
from kssm_mlx.weights.naming.configs import SHIM_NAME, to_file
from kssm_mlx.weights.quantize import quantization_of

FORMATS = ("mlx-lm", "hf")
SHIM = '''"""The model of this folder, for mlx-lm with --trust-remote-code; needs the package kssm-mlx."""

from kssm_mlx.integrations.mlx_lm import Model, ModelArgs

__all__ = ["Model", "ModelArgs"]
'''
_INSIDE_BLOCK = re.compile(r"^.*?\.\d+\.")  # what stands before a module's name inside its block
Weights = dict[str, mx.array]


def export(
    model: LanguageModel,
    folder: str | Path,
    *,
    format: str = "mlx-lm",
    side_files: Mapping[str, str | bytes] | None = None,
    token_ids: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model` as the new folder `folder`.

    side_files: name -> content, such as the tokenizer's. token_ids: what config.json says of special tokens,
    such as {"eos_token_id": [0]}; also generation_config.json, unless that is a side file.
    Raises: ConfigError for a format that does not exist or cannot hold this model, and a folder in use.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ConfigError(f"no export format {format!r}; formats are {', '.join(FORMATS)}, state, adapters")
    refuse_used(folder)
    config, weights = _mlx_lm(model) if format == "mlx-lm" else _transformers(model)
    ids = dict(token_ids or {})
    texts = {
        "generation_config.json": _json(ids),
        **(side_files or {}),
        "config.json": _json({**config, **ids}),
        **({SHIM_NAME: SHIM} if "model_file" in config else {}),
    }
    _write(folder, texts, weights, {"format": "mlx" if format == "mlx-lm" else "pt"})
    return folder


def export_adapters(model: LanguageModel, folder: str | Path, base_digest: str | None) -> Path:
    """Write the adapters of `model` as a new folder, which mlx-lm takes beside the base model's.

    base_digest: of the weights they were trained beside, for the record.
    Raises: ConfigError for a model without adapters, and a folder in use.
    """
    folder, found = Path(folder), adapters_of(model)
    refuse_used(folder)
    if not found:
        raise ConfigError("this model has no adapters of its own; export it without --format adapters")
    first, keys = next(iter(found.values())), {_INSIDE_BLOCK.sub("", name) for name in found}
    config = {
        "fine_tune_type": "dora" if isinstance(first, DoRALinear) else "lora",
        "num_layers": len(model.layers),
        "lora_parameters": {
            "rank": first.lora_a.shape[1],
            "scale": first.scale,
            "dropout": 0.0,
            "keys": sorted(keys),
        },
        "base_digest": base_digest,
    }
    texts = {"adapter_config.json": _json(config)}
    _write(folder, texts, dict(tree_flatten(model.trainable_parameters())), {"format": "mlx"}, "adapters")
    return folder


def refuse_used(folder: str | Path) -> None:
    """Raises: ConfigError for a folder with anything in it, and a file in its place."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is in use; write into a new folder")


def _mlx_lm(model: LanguageModel) -> tuple[dict[str, Any], Weights]:
    quantization = quantization_of(model)
    stored = {"quantization": quantization} if quantization else {}
    # A model of mlx-lm's own code needs none of ours.
    shim = {} if model.args.model_type == "mlx_lm" else {"model_file": SHIM_NAME}
    return {**to_file(model.args), **shim, **stored}, _weights(model)


def _transformers(model: LanguageModel) -> tuple[dict[str, Any], Weights]:
    _refuse_unless_transformers_has_it(model)
    config = {**to_file(model.args), "architectures": [FAMILIES[model.args.model_type].architecture]}
    weights = {
        name: value.moveaxis(1, 2) if name.endswith("conv1d.weight") else value
        for name, value in _weights(model).items()
    }
    if config.pop("weights_rescaled", False):
        weights = _multiplied_back(weights, model.args.rescale_every)
    return config, weights


def _refuse_unless_transformers_has_it(model: LanguageModel) -> None:
    config = model.args
    known = [name for name, family in FAMILIES.items() if family.architecture]
    if config.model_type not in known:
        raise ConfigError(
            f"transformers does not have {config.model_type}, only {', '.join(known)}; use --format mlx-lm"
        )
    if quantization_of(model):
        raise ConfigError("transformers does not read MLX's quantised weights; export the unquantised model")
    if getattr(config, "norm_before_gate", False):
        raise ConfigError("transformers' Mamba-2 has no norm_before_gate; use --format mlx-lm")
    if config.model_type != "rwkv" and config.channels % config.hidden_size:
        raise ConfigError(
            f"transformers wants channels that are a multiple of hidden_size, not {config.channels} of "
            f"{config.hidden_size}; use --format mlx-lm"
        )


def _multiplied_back(weights: Weights, every: int) -> Weights:
    """transformers divides these weights itself when it runs: what came divided is multiplied back."""
    divided = ("attention.output.weight", "feed_forward.value.weight")
    return {
        name: value * 2 ** (int(name.split(".")[2]) // every) if every and name.endswith(divided) else value
        for name, value in weights.items()
    }


def _weights(model: LanguageModel) -> Weights:
    return dict(tree_flatten(model.parameters()))


def _write(
    folder: Path,
    texts: Mapping[str, str | bytes],
    weights: Weights,
    metadata: dict[str, str],
    stem: str = "model",
) -> None:
    """Everything into a folder beside the final one, which then takes its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, text in texts.items():
            raw = text.encode() if isinstance(text, str) else text
            files.write_synced(temporary / name, lambda f, raw=raw: f.write(raw))
        files.write_synced(
            temporary / f"{stem}.safetensors", lambda f: mx.save_safetensors(f, weights, metadata)
        )
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files.sync_folder(folder.parent)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
