"""What is publicly known about the hosts people use: `manifests/NAME.toml`, one file per repository.

A fact that could not be known when the file was written is absent: `kssm verify-weights --write-manifest`
measures digests, fingerprint and nats/token on a machine that has the weights.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from kssm_mlx.errors import ConfigError


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelFacts(_Table):
    """Architecture and sizes in the words of a configuration; vocab_size counts the embedding's rows."""

    model_type: Literal["mamba", "mamba2", "rwkv", "rwkv7"]
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt


class TokenizerFacts(_Table):
    """The tokenizer the model was trained with and how many ids it gives."""

    name: Literal["gpt-neox-20b", "rwkv-world"]
    vocab_size: PositiveInt


class Published(_Table):
    """Figures of the authors, with where they stand. Units: nats per token of the model's own tokenizer.

    checkpoint: which of several files of the authors the figures are of.
    """

    source: str = Field(min_length=1)
    checkpoint: str | None = None
    pile_perplexity: PositiveFloat | None = None
    pile_nats_per_token: PositiveFloat | None = None
    lambada_perplexity: PositiveFloat | None = None


class ShippedManifest(_Table):
    """One file of `manifests/`."""

    format: Literal["kssm-manifest/1"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    model: ModelFacts
    tokenizer: TokenizerFacts
    published: Published | None = None


def parse_shipped(text: str, name: str) -> ShippedManifest:
    """A manifest from its TOML. Raises: ConfigError naming the file and the field."""
    try:
        return ShippedManifest.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{name} is not TOML: {e}") from None
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(map(str, error["loc"]))
        raise ConfigError(f"{name}, {where}: {error['msg'].lower()}, got {error['input']!r}") from None


@lru_cache(maxsize=1)
def shipped_manifests() -> MappingProxyType[str, ShippedManifest]:
    """Repository -> manifest, of every file in the package."""
    found = sorted((files(__package__) / "manifests").iterdir(), key=lambda f: f.name)
    parsed = [parse_shipped(f.read_text("utf-8"), f.name) for f in found if f.name.endswith(".toml")]
    return MappingProxyType({m.repo: m for m in parsed})
