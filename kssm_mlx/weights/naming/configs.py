"""Configurations as config.json: Hugging Face's keys where a family has them, our own fields for K-SSM."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from kssm_mlx import models
from kssm_mlx.errors import ConfigError

# What stands in a config.json beside the architecture: how the file is stored and run, not what it computes.
BESIDE = (
    *("model_file", "architectures", "quantization", "quantization_config", "quantize_activations"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "transformers_version"),
)


def to_file(config) -> dict[str, Any]:
    """The keys of a config.json; `from_file` reads them back to a configuration of the same model."""
    values = {name: value for name, value in asdict(config).items() if value is not None}
    derived = models.FAMILIES[config.model_type].derived
    return _tagged(values | derived(config) if derived else values)


def from_file(values: dict[str, Any]):
    """The configuration of a config.json that `to_file` or Hugging Face wrote.

    Raises: ConfigError for an architecture that is not known, and for keys it does not understand.
    """
    name = values.get("model_type")
    if name not in models.FAMILIES:
        raise ConfigError(f"config.json has model_type {name!r}; known: {', '.join(models.FAMILIES)}")
    _, config_class, _ = models.FAMILIES[name].load()
    values = _untagged(values)
    if hasattr(config_class, "from_huggingface"):
        return config_class.from_huggingface(values)
    return models.config_from_dict({key: value for key, value in values.items() if key not in BESIDE})


def _tagged(value: Any) -> Any:
    """JSON has no infinity; transformers and mlx-lm write it as {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        return {key: _tagged(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_tagged(v) for v in value]
    infinite = isinstance(value, float) and math.isinf(value)
    return {"__float__": "Infinity" if value > 0 else "-Infinity"} if infinite else value


def _untagged(value: Any) -> Any:
    if isinstance(value, dict):
        tagged = value.keys() == {"__float__"}
        return float(value["__float__"]) if tagged else {key: _untagged(v) for key, v in value.items()}
    return [_untagged(v) for v in value] if isinstance(value, list) else value
