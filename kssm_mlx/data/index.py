"""index.json: what a folder of token files holds and what everything in it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from kssm_mlx.data.tokenizers.protocol import FILE as TOKENIZER
from kssm_mlx.errors import DataError
from kssm_mlx.parsing import parse_json

FORMAT = "kssm-tokens/1"
INDEX = "index.json"
SPLITS = ("train", "validation")
FILES = (*(f"{name}.{kind}" for name in SPLITS for kind in ("bin", "docs.bin")), TOKENIZER)
SCORED = tuple(f"{name}.scored.bin" for name in SPLITS)  # of a task: which of its tokens are targets
MIXED = "validation.sources.bin"  # of a mixture: which source each held-out document is of
LABELS = tuple(f"{name}.labels.bin" for name in SPLITS)  # of a labelled task: what its places ask for


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Corpus(_Section):
    name: str
    source: str
    licence: str
    digest: str
    documents: int


class _Tokenizer(_Section):
    name: str
    digest: str
    separator_id: int | None


class _Split(_Section):
    method: str
    validation: float
    seed: int


class _Side(_Section):
    tokens: int = Field(ge=1)
    documents: int = Field(ge=1)
    utf8_bytes: int = Field(ge=1)
    lost: float | None = Field(None, ge=0)  # of the text, by its tokenizer; unknown in files of 0.1.0


class _Sides(_Section):
    train: _Side
    validation: _Side


class _Task(_Section):
    name: str
    options: dict[str, Any]
    row: int = Field(ge=3)
    labelled: bool = False


class _Part(_Section):
    """One source of a mixture; train: tokens of its own."""

    name: str
    source: str
    weight: float
    epochs: float | None
    train: int = Field(ge=1)


class _File(_Section):
    """sha256: of the bytes of all its shards in their order."""

    sha256: str
    shards: int = Field(1, ge=1)


class _Index(_Section):
    format: str
    dtype: Literal["uint16", "uint32"]
    vocab_size: int = Field(ge=1)
    corpus: _Corpus
    tokenizer: _Tokenizer
    split: _Split
    splits: _Sides
    special_tokens: bool = False
    task: _Task | None = None
    mixture: list[_Part] | None = None
    files: dict[str, _File]

    @field_validator("files")
    @classmethod
    def _every_file(cls, entries: dict[str, _File], info: ValidationInfo) -> dict[str, _File]:
        task = info.data.get("task")
        expected = {*FILES, *(SCORED if task else ()), *(LABELS if task and task.labelled else ())}
        expected |= {MIXED} if info.data.get("mixture") else set()
        if entries.keys() != expected:
            raise ValueError(f"got {', '.join(sorted(entries))}, expected {', '.join(sorted(expected))}")
        return entries


def read_index(folder: Path) -> dict[str, Any]:
    """The index of `folder`, with every key there and of its type.

    Raises: DataError for an index that is missing, broken, incomplete or of another format.
    """
    path = folder / INDEX
    try:
        index = parse_json(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no {INDEX}, so it holds no finished token files; prepare the data"
        ) from None
    except OSError as e:
        raise DataError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from None
    except ValueError as e:
        raise DataError(f"{path} is not JSON: {e}; prepare the data again in an empty folder") from None
    found = index.get("format") if isinstance(index, dict) else type(index).__name__
    if found != FORMAT:
        raise DataError(f"{path} has format {found!r}; expected {FORMAT!r}")
    try:
        return _Index.model_validate(index).model_dump()
    except ValidationError as e:
        first = e.errors()[0]
        key, problem = ".".join(map(str, first["loc"])), first["msg"].lower()
        raise DataError(f"{path}: {key}: {problem}; prepare the data again in an empty folder") from None
