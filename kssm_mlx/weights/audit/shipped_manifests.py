"""What is publicly known about the base models people use: `manifests/NAME.toml`, one file per repository.

A fact that could not be known when the file was written is absent: `kssm verify-weights --write-manifest`
measures digests, fingerprint and nats/token on a machine that has the weights.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from pydantic import Field, ValidationError

from kssm_mlx.errors import ConfigError, quote
from kssm_mlx.weights.audit.manifest import Manifest
from kssm_mlx.weights.audit.manifest_tables import ModelFacts, TokenizerFacts


class ShippedManifest(Manifest):
    """A manifest that says at least which repository it is of, and what is in there."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    model: ModelFacts = Field()
    tokenizer: TokenizerFacts = Field()


def parse_shipped(text: str, name: str) -> ShippedManifest:
    """A manifest from its TOML. Raises: ConfigError naming the file and the field."""
    try:
        return ShippedManifest.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{name} is not TOML: {e}") from None
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(map(str, error["loc"]))
        raise ConfigError(f"{name}, {where}: {error['msg'].lower()}, got {quote(error['input'])}") from None


@lru_cache(maxsize=1)
def shipped_manifests() -> MappingProxyType[str, ShippedManifest]:
    """Repository -> manifest, of every file in the package."""
    found = sorted((files("kssm_mlx.weights.audit") / "manifests").iterdir(), key=lambda f: f.name)
    parsed = [parse_shipped(f.read_text("utf-8"), f.name) for f in found if f.name.endswith(".toml")]
    return MappingProxyType({m.repo: m for m in parsed})
