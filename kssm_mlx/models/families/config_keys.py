"""What each key of a foreign config.json is to us: read, known to be without effect, or refused by name.

A key that nobody reads may change what the model computes, so none is dropped without a reason: a family has
one table per source, and what stands in no table is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kssm_mlx.errors import ConfigError, nearest

_STORED = "how the file is stored"
_RUN = "how the original code runs, not what it computes"
_FRESH = "how fresh weights are drawn; these are trained"
_ENDS = "where a text begins and ends; read by weights/side_files.py"
_NAMES = "names for people"

# Keys that transformers writes for every architecture.
EVERYWHERE: dict[str, str] = {
    **dict.fromkeys(("architectures", "dtype", "torch_dtype", "transformers_version", "format"), _STORED),
    **dict.fromkeys(("quantization", "quantization_config"), "read by weights/quantize.py"),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"), _ENDS),
    **dict.fromkeys(("_name_or_path", "name_or_path", "tokenizer_class", "id2label", "label2id"), _NAMES),
    **dict.fromkeys(
        ("use_cache", "return_dict", "torchscript", "output_hidden_states", "output_attentions"), _RUN
    ),
    **dict.fromkeys(("problem_type", "task_specific_params", "finetuning_task"), "other tasks than text"),
    "initializer_range": _FRESH,
}
# Keys of transformers that are written for every architecture and that this one must not use.
UNUSED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, True, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
    "cross_attention_hidden_size": (None,),
    "chunk_size_feed_forward": (0, None),
    "pruned_heads": ({}, None),
    "quantize_activations": (False, None),
}
CODE = ("auto_map", "model_file")  # they name Python files, which are never run
# Keys that are read and hold something else than a number, a switch or nothing.
NO_NUMBERS = ("model_type", "hidden_act", "time_step_limit", "dt_limit", "value_dim", "ssm_cfg", "layer")
AUTOMATIC = ("time_step_rank", "dt_rank")  # a number or "auto"


@dataclass(frozen=True)
class ConfigKeys:
    """used: keys that the configuration is made of. only: key -> the values with which the model is the one
    implemented here. ignored: key -> why it changes nothing.
    """

    used: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)

    def read(self, values: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
        """The keys that are used.

        Raises: ConfigError for a key that is in no table, or that has a value of another model.
        """
        for key, value in values.items():
            if key in self.only:
                _require_supported(where, key, value, self.only[key])
            elif key not in self.used and key not in self.ignored:
                raise ConfigError(_explain_unknown(where, key, value, (*self.used, *self.only)))
        return {key: value for key, value in values.items() if key in self.used}


def require_numbers(values: Mapping[str, Any], where: str = "config.json") -> None:
    """Before anything is computed of them: "x" times 2147483648 is a text of 2 GB.

    Raises: ConfigError for a text, a list or a table in the place of a number.
    """
    for key, value in values.items():
        known = key in NO_NUMBERS or (key in AUTOMATIC and value == "auto")
        if not known and isinstance(value, str | list | dict):
            raise ConfigError(f"{where} has {key} = {_shorten(value)}; expected a number")


def transformers_keys(
    used: tuple[str, ...], only: Mapping[str, tuple[Any, ...]], ignored: Mapping[str, str]
) -> ConfigKeys:
    """A table of a config.json of transformers: the keys of the architecture, and those of every one."""
    return ConfigKeys(("model_type", *used), {**UNUSED, **only}, {**EVERYWHERE, **ignored})


def run_time(*names: str) -> dict[str, str]:
    """Keys about the original code: kernels, chunks, caches."""
    return dict.fromkeys(names, _RUN)


def fresh_weights(*names: str) -> dict[str, str]:
    """Keys about initialisation."""
    return dict.fromkeys(names, _FRESH)


def _require_supported(where: str, key: str, value: Any, supported: tuple[Any, ...]) -> None:
    # By kind as well: 0 is not False, and [] is not None.
    if not any(type(value) is type(one) and value == one for one in supported):
        known = " or ".join(map(repr, supported))
        raise ConfigError(
            f"{where} has {key} = {_shorten(value)}; this architecture is implemented for {known}"
        )


def _explain_unknown(where: str, key: str, value: Any, known: tuple[str, ...]) -> str:
    if key in CODE:
        return (
            f"{where} has {key} = {_shorten(value)}, which names code of the model's own; no such code is "
            "run here, use a model whose architecture is in the package"
        )
    shown = key if key.isidentifier() else _shorten(key)
    return (
        f"{where} has {shown} = {_shorten(value)}, which is not understood, and might change what the model "
        f"computes{nearest(key, known)}; if it has no effect on the model, remove it from the file"
    )


def _shorten(value: Any) -> str:
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."
