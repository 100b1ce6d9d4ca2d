"""Which model of mlx-lm: the keys of its config.json, and the classes that read them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError, quote
from kssm_mlx.models.base import MOST_BLOCKS, refuse_counts_below_one
from kssm_mlx.models.mlx_lm.walk import Walk, said_in_one_line

STORED = ("quantization", "quantization_config")  # how the weights of a file are kept, not what they are
_MODULE = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class MLXLMConfig:
    """options: the keys of a config.json, `model_type` among them, as mlx-lm's ModelArgs read them.

    vocab_size: rows of the embedding, which in a recipe the data's tokenizer sets.
    """

    vocab_size: int
    options: dict[str, Any]
    model_type: Literal["mlx_lm"] = "mlx_lm"

    def __post_init__(self):
        refuse_counts_below_one(self)
        _refuse_many_blocks(self.options)

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> str:
        """All of it as one text."""
        return json.dumps([self.vocab_size, self.options], sort_keys=True, default=str)

    @property
    def architecture(self) -> str:
        """mlx-lm's name of it."""
        return str(self.options.get("model_type"))

    @property
    def hidden_size(self) -> int:
        """Width of the stream between the blocks."""
        return _sizes(self)[0]

    @property
    def num_hidden_layers(self) -> int:
        return _sizes(self)[1]

    @property
    def unread(self) -> list[str]:
        """Keys that mlx-lm's ModelArgs do not have, and drop."""
        return [key for key in self.options if key not in _read_keys(self.key, self)]

    @classmethod
    def from_file(cls, values: dict[str, Any]) -> MLXLMConfig:
        """Of a config.json. Raises: ConfigError for one that mlx-lm has no model for, or that names code."""
        if "model_file" in values:
            raise ConfigError(
                f"config.json has model_file = {quote(values['model_file'])}, which names code of the "
                "model's own; no such code is run here"
            )
        if type(values.get("vocab_size")) is not int:
            raise ConfigError(
                f"config.json has vocab_size {quote(values.get('vocab_size'))}; expected a whole number"
            )
        options = {k: v for k, v in values.items() if k not in (*STORED, "vocab_size")}
        return cls(values["vocab_size"], options)

    def to_file(self) -> dict[str, Any]:
        """The config.json that mlx-lm reads."""
        return {**self.options, "vocab_size": self.vocab_size}


SIZES: dict[str, tuple[int, int, int]] = {  # width, blocks, heads
    "xs": (64, 2, 4),
    "s": (128, 4, 4),
    "m": (384, 6, 6),
    "l": (768, 12, 12),
}


def preset(size: str, vocab_size: int, context: int) -> MLXLMConfig:
    """A Llama at a size, for want of other options; rotary positions do not know of `context`."""
    width, blocks, heads = SIZES[size]
    options = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "intermediate_size": 3 * width,
        "rms_norm_eps": 1e-5,
    }
    return MLXLMConfig(vocab_size, options)


def make(config: MLXLMConfig, seed: int = 0) -> nn.Module:
    """mlx-lm's own model, with fresh parameters of a seed that are not evaluated.

    Raises: ConfigError where mlx-lm has no such model, or its code cannot make one of these options.
    """
    model_class, args_class = classes(config)
    with (
        _seed_generator(seed),
        said_in_one_line(f"mlx-lm's {config.architecture} cannot be made of these options"),
    ):
        return model_class(args_class.from_dict(config.to_file()))


def classes(config: MLXLMConfig) -> tuple[Callable[[Any], nn.Module], Any]:
    """The Model and the ModelArgs that mlx-lm's own loader would take."""
    from mlx_lm import utils

    unknown = f"mlx-lm has no model of type {quote(config.architecture)}"
    if not _MODULE.fullmatch(config.architecture):
        raise ConfigError(unknown)
    try:
        return utils._get_classes(config.to_file())
    except (KeyError, ValueError, AttributeError):  # a module of mlx-lm that is no model has no Model
        raise ConfigError(unknown) from None


def has_model(model_type: str) -> bool:
    """Whether mlx-lm has an architecture of this name."""
    try:
        return bool(classes(MLXLMConfig(1, {"model_type": model_type})))
    except ConfigError:
        return False


@contextmanager
def _seed_generator(seed: int) -> Iterator[None]:
    """MLX's generator from a seed, and afterwards as it was: mlx-lm draws from no other."""
    state: Any = mx.random.state
    first, second = (int(k) for k in state[0].tolist())
    mx.random.seed(seed)
    try:
        yield
    finally:
        mx.random.seed(first << 32 | second)


def _refuse_many_blocks(options: dict[str, Any]) -> None:
    """Raises: ConfigError for so many blocks that making them would not end."""
    for key, value in options.items():
        if "layers" in key and type(value) is int and value > MOST_BLOCKS:
            raise ConfigError(f"{key} must be at most {MOST_BLOCKS:,}, got {value:,}")


def _sizes(config: MLXLMConfig) -> tuple[int, int]:
    return _measure(config.key, config)


@lru_cache(maxsize=16)
def _measure(key: str, config: MLXLMConfig) -> tuple[int, int]:
    walk = Walk(make(config), config.architecture)
    return walk.width, len(walk.blocks)


@lru_cache(maxsize=16)
def _read_keys(key: str, config: MLXLMConfig) -> frozenset[str]:
    return frozenset(inspect.signature(classes(config)[1]).parameters)
