"""A manifest: what weights are, tensor by tensor, in a TOML file that people read and `verify-weights` reads.

    format = "kssm-manifest/1"     root: one digest of all tensors, whatever the shards and their order
    [tensors]                      "name" = { dtype = "float32", shape = [50280, 768], sha256 = "..." }

Everything but the format may be absent; the manifests shipped with the package have no tensors until someone
who has the weights fills them (`kssm verify-weights REPO --write-manifest FILE`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from kssm_mlx import files
from kssm_mlx.errors import ConfigError, quote
from kssm_mlx.parsing import parse_toml
from kssm_mlx.weights.audit.findings import Finding, list_some
from kssm_mlx.weights.audit.manifest_tables import (
    SHA256,
    Behaviour,
    Fingerprint,
    ModelFacts,
    Published,
    Table,
    TokenizerFacts,
)

FORMAT = "kssm-manifest/1"


class TensorFacts(Table):
    dtype: str
    shape: tuple[int, ...]
    sha256: str = Field(pattern=SHA256)


class Manifest(Table):
    """repo and revision: where the weights are from. fingerprint and behaviour: what L4 and L5 measured where
    the weights were seen to work. domain: what the model was trained on, English unless it says otherwise.
    """

    format: Literal["kssm-manifest/1"] = FORMAT
    repo: str | None = None
    revision: str | None = None
    root: str | None = Field(default=None, pattern=SHA256)
    model: ModelFacts | None = None
    tokenizer: TokenizerFacts | None = None
    published: Published | None = None
    domain: str | None = None
    fingerprint: Fingerprint | None = None
    behaviour: Behaviour | None = None
    tensors: dict[str, TensorFacts] = Field(default_factory=dict)

    @property
    def digests(self) -> dict[str, str]:
        return {name: facts.sha256 for name, facts in self.tensors.items()}


def read_manifest(path: str | Path) -> Manifest:
    """Raises: ConfigError naming the file and the field that cannot be read."""
    try:
        return Manifest.model_validate(parse_toml(Path(path).read_text("utf-8")))
    except OSError as e:
        raise ConfigError(f"cannot read the manifest {path}: {(e.strerror or str(e)).lower()}") from None
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(map(str, error["loc"]))
        raise ConfigError(f"{path}, {where}: {error['msg'].lower()}, got {quote(error['input'])}") from None
    except ValueError as e:
        raise ConfigError(f"the manifest {path} is not TOML: {e}") from None


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Write it whole or not at all. Raises: ConfigError when it cannot be written."""
    try:
        files.replace(path, to_toml(manifest))
    except OSError as e:
        raise ConfigError(f"cannot write {path}: {(e.strerror or str(e)).lower()}") from None


def to_toml(manifest: Manifest) -> str:
    """The manifest as TOML, one line per tensor."""
    values = manifest.model_dump(mode="json", exclude_none=True)
    tensors = values.pop("tensors")
    tables = {key: values.pop(key) for key in list(values) if isinstance(values[key], dict)}
    lines = [f"{key} = {_value(value)}" for key, value in values.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_key(key)} = {_value(value)}" for key, value in table.items())]
    if tensors:
        lines += ["", "[tensors]", *(f"{_key(name)} = {_value(tensors[name])}" for name in sorted(tensors))]
    return "\n".join(lines) + "\n"


def compare(
    digests: Mapping[str, str], expected: Mapping[str, str], what: str = "the manifest"
) -> list[Finding]:
    """W11: the tensors that differ, by name."""
    changed = sorted(n for n in digests.keys() & expected.keys() if digests[n] != expected[n])
    missing, extra = sorted(expected.keys() - digests.keys()), sorted(digests.keys() - expected.keys())
    parts = [
        f"{len(names)} {word}: {list_some(names)}"
        for names, word in ((changed, "differ"), (missing, "missing"), (extra, f"not in {what}"))
        if names
    ]
    return [Finding("W11", "; ".join(parts))] if parts else []


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    """TOML of a value; its strings, numbers and arrays are written as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
