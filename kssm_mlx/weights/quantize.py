"""Weights in 4 or 8 bits: the wide projections and embeddings, by MLX's own quantisation.

Each model's `quant_predicate` says which modules stay as they are: decays, norms, convolutions and the small
projections that set the dynamics. config.json names every quantised module with its settings, in the form
mlx-lm reads and writes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import LanguageModel

# mode -> group sizes that MLX has kernels for, the first is the default, and bits.
MODES = {
    "affine": ((64, 32, 128), (4, 8)),
    "mxfp4": ((32,), (4,)),
    "mxfp8": ((32,), (8,)),
}
QUANTISED = (nn.QuantizedLinear, nn.QuantizedEmbedding)


def settings(bits: int, mode: str = "affine", group_size: int | None = None) -> dict[str, Any]:
    """The three settings of a quantisation, complete. Raises: ConfigError for what MLX does not have."""
    if mode not in MODES:
        raise ConfigError(f"no quantisation mode {mode!r}; modes are {', '.join(MODES)}")
    sizes, widths = MODES[mode]
    group_size = sizes[0] if group_size is None else group_size
    for name, value, known in (("bits", bits, widths), ("group size", group_size, sizes)):
        if value not in known:
            choices = " or ".join(map(str, known))
            raise ConfigError(f"{mode} quantisation has no {name} {value}; it has {choices}")
    return {"group_size": group_size, "bits": bits, "mode": mode}


def quantize(
    model: LanguageModel, bits: int, mode: str = "affine", group_size: int | None = None
) -> list[str]:
    """Quantise what `model.quant_predicate` allows, in place; returns the names of the modules.

    A module whose rows are no multiple of the group size stays as it is.
    Raises: ConfigError for unknown settings, a model that is quantised already or has nothing to quantise.
    """
    chosen = settings(bits, mode, group_size)
    if quantization_of(model):
        raise ConfigError("the model is quantised already; quantise the one it was made from")
    allows = model.quant_predicate

    def is_quantizable(path: str, module: nn.Module) -> bool:
        if not hasattr(module, "to_quantized"):
            return False
        weight: mx.array = module["weight"]
        return weight.shape[-1] % chosen["group_size"] == 0 and bool(allows(path, module))

    nn.quantize(model, **chosen, class_predicate=is_quantizable)
    names = _describe_quantized(model)
    if not names:
        raise ConfigError(
            f"no projection of this model has rows that are a multiple of {chosen['group_size']}; "
            "give a smaller group size"
        )
    mx.eval(model.parameters())
    return list(names)


def quantization_of(model: LanguageModel) -> dict[str, Any] | None:
    """The "quantization" of config.json: settings, and again under each module's name; None without any."""
    modules = _describe_quantized(model)
    if not modules:
        return None
    return {**next(iter(modules.values())), **modules}


def apply_quantization(model: LanguageModel, config: dict[str, Any], names: Collection[str]) -> LanguageModel:
    """Give `model` the quantised modules that a folder's weights need, in place, ready to load them.

    config: the folder's config.json. names: of the tensors in its files: mlx-lm names in config.json only
    the modules that differ, so a module is quantised where its `scales` are. Unquantised folders pass.
    Raises: ConfigError for a quantisation that is not MLX's.
    """
    stored = config.get("quantization")
    if stored is None:
        if config.get("quantization_config"):
            raise ConfigError(
                "config.json has a quantization_config that is not MLX's; use unquantised weights"
            )
        return model
    try:
        default = {"group_size": stored["group_size"], "bits": stored["bits"]}
    except KeyError as e:
        raise ConfigError(f"the quantization in config.json has no {e}") from None
    default["mode"] = stored.get("mode", "affine")

    def wanted(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or f"{path}.scales" not in names:
            return False
        return {**default, **(stored[path] if isinstance(stored.get(path), dict) else {})}

    nn.quantize(model, **default, class_predicate=wanted)
    return model


def _describe_quantized(model: LanguageModel) -> dict[str, dict[str, Any]]:
    return {
        path: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        for path, module in model.named_modules()
        if isinstance(module, QUANTISED)
    }
