"""Configurations as config.json: Hugging Face's keys where a family has them, our own fields for K-SSM."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any

from kssm_mlx import models
from kssm_mlx.errors import ConfigError, quote
from kssm_mlx.models.families.config_keys import EVERYWHERE, UNUSED, ConfigKeys, require_numbers
from kssm_mlx.models.mlx_lm.config import MLXLMConfig, has_model

SHIM_NAME = "kssm_model.py"  # the "model_file" of our own exports, by which they are told from others' files


def to_file(config) -> dict[str, Any]:
    """The keys of a config.json; `from_file` reads them back to a configuration of the same model."""
    if isinstance(config, MLXLMConfig):
        return config.to_file()
    values = {name: value for name, value in asdict(config).items() if value is not None}
    derived = models.FAMILIES[config.model_type].derived
    return _tag_infinity(values | derived(config) if derived else values)


def from_file(values: dict[str, Any]):
    """The configuration of a config.json that `to_file` or Hugging Face wrote.

    Raises: ConfigError for an architecture that is not known, and for keys it does not understand.
    """
    name = values.get("model_type")
    if not isinstance(name, str):
        raise ConfigError(f"config.json has model_type {name!r}; known: {', '.join(models.FAMILIES)}")
    if name not in models.FAMILIES:
        return _read_mlx_lm(name, values)
    family, values = models.FAMILIES[name], _untag_infinity(values)
    config_class = family.load()[1]
    keys = family.config_keys.get("hf")
    if values.get("model_file") == SHIM_NAME or keys is None:
        keys = _own_keys(config_class, family)
    values = keys.read(values)
    if hasattr(config_class, "from_huggingface"):
        require_numbers(values)
        return config_class.from_huggingface(values)
    return models.config_from_dict(values)


def _read_mlx_lm(name: str, values: dict[str, Any]) -> MLXLMConfig:
    """That of an architecture which is none of ours. Raises: ConfigError unless mlx-lm has it."""
    if not has_model(name):
        raise ConfigError(
            f"config.json has model_type {quote(name)}; known: {', '.join(models.FAMILIES)}, and the models "
            "of mlx-lm, which has none of this name"
        )
    return MLXLMConfig.from_file(values)


def from_state_spaces(values: dict[str, Any]):
    """The configuration of a config.json of state-spaces' own files.

    Raises: ConfigError for keys, also of its `ssm_cfg`, that are not understood.
    """
    ssm = values.get("ssm_cfg") or {}
    family = models.FAMILIES["mamba2" if ssm.get("layer", "Mamba1") == "Mamba2" else "mamba"]
    values = family.config_keys["state-spaces"].read(values)
    ssm = family.config_keys["ssm_cfg"].read(ssm, "ssm_cfg in config.json")
    require_numbers(values)
    require_numbers(ssm, "ssm_cfg in config.json")
    return family.load()[1].from_state_spaces({**values, "ssm_cfg": ssm})


def _own_keys(config_class: type, family: models.Family) -> ConfigKeys:
    """Of a file that we wrote: our fields, of which none is ignored, and what transformers asks for."""
    own = {f.name for f in fields(config_class)}
    derived = {"expand", "hidden_act", "norm_first", "norm_bias", "intermediate_size", "time_step_rank"}
    derived = derived if family.derived else set()
    beside = {key: why for key, why in EVERYWHERE.items() if key not in own}
    return ConfigKeys((*sorted(own | derived),), UNUSED | {"model_file": (SHIM_NAME,)}, beside)


def _tag_infinity(value: Any) -> Any:
    """JSON has no infinity; transformers and mlx-lm write it as {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        return {key: _tag_infinity(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_tag_infinity(v) for v in value]
    infinite = isinstance(value, float) and math.isinf(value)
    return {"__float__": "Infinity" if value > 0 else "-Infinity"} if infinite else value


def _untag_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        tagged = value.keys() == {"__float__"}
        return float(value["__float__"]) if tagged else {key: _untag_infinity(v) for key, v in value.items()}
    return [_untag_infinity(v) for v in value] if isinstance(value, list) else value
