"""The token files of a recipe, written unless they are there."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from kssm_mlx import files
from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.index import FILES, FORMAT, INDEX, LABELS, MIXED, SCORED
from kssm_mlx.data.preparation.making import Source, Written, mixed_sources
from kssm_mlx.data.preparation.streamed import WORK, prepare_streams
from kssm_mlx.data.preparation.tasks import prepare_task
from kssm_mlx.data.preparation.texts import prepare_texts
from kssm_mlx.data.shards import find_shards, shards_digest
from kssm_mlx.data.streams.documents import Stream, open_streams
from kssm_mlx.data.streams.survey import survey
from kssm_mlx.data.tasks import PREFIX
from kssm_mlx.data.tokens import DTYPES, TokenData
from kssm_mlx.errors import DataError
from kssm_mlx.terminal import Bytes


class DataRecipe(Protocol):
    """The fields of a recipe's [data] section; those that came later may be missing."""

    @property
    def source(self) -> str: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def validation(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def task(self) -> dict[str, Any]: ...


def prepare(recipe: DataRecipe, folder: str | Path) -> TokenData:
    """The token files of a recipe's [data] section in `folder`, written unless they are already there.

    Files are reused when corpus, tokenizer and split are the same by digest. The index goes away first and
    comes back last, so a folder that was left half-written has none and is prepared again.

    Raises: ConfigError, DataError (also for a folder that cannot be written or a full disk).
    """
    folder, sources = Path(folder), mixed_sources(recipe)
    if not sources and recipe.source.startswith(PREFIX):
        return _prepare(prepare_task(recipe), folder)
    if streams := open_streams([each.source for each in sources] or [recipe.source]):
        return _prepare_streams(recipe, streams, folder)
    return _prepare(prepare_texts(recipe), folder)


def read_digest(source: str) -> str:
    """What `Corpus.digest` is of the text of a source, however large. Raises: as `open_corpus`."""
    if streams := open_streams([source]):
        return survey(streams[0], lambda nbytes: None).digest
    return open_corpus(source).digest


def _prepare(source: Source, folder: Path) -> TokenData:
    """Opened, or written where they are not there. Raises: DataError for a folder that takes no files."""
    if _is_prepared(folder, source.origin):
        return TokenData.open(folder)
    with _written_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        dtype = "uint16" if source.tokenizer.vocab_size <= 1 << 16 else "uint32"
        written = source.write(folder, DTYPES[dtype])
        source.tokenizer.save(folder)
        _write_index(folder, source, written, dtype)
    return TokenData.open(folder)


def _prepare_streams(recipe: DataRecipe, streams: list[Stream], folder: Path) -> TokenData:
    """The same of text that is read in pieces, with a bar on a terminal."""
    with Bytes() as meter:
        meter.start(2 * sum(stream.nbytes for stream in streams))
        with _written_in(folder):
            source = prepare_streams(recipe, streams, folder, meter.advance)
        data = _prepare(source, folder)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return data


@contextlib.contextmanager
def _written_in(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise DataError(f"cannot write token files in {folder}: {(e.strerror or str(e)).lower()}") from None


def _is_prepared(folder: Path, origin: dict[str, Any]) -> bool:
    """Whether `folder` has usable token files of this origin."""
    try:
        index = TokenData.open(folder).index
    except DataError:
        return False
    for part in index["mixture"] or ():
        del part["train"]  # found when it was written
    return index.items() >= origin.items()


def _write_index(folder: Path, source: Source, written: Written, dtype: str) -> None:
    origin = source.origin
    task, mixture = origin.get("task"), origin.get("mixture")
    names = (*FILES, *(SCORED if task else ()), *(LABELS if task and task["labelled"] else ()))
    names = (*names, MIXED) if mixture else names
    if mixture:
        parts = zip(mixture, written.trained, strict=True)
        origin = {**origin, "mixture": [{**part, "train": tokens} for part, tokens in parts]}
    index = {
        "format": FORMAT,
        "dtype": dtype,
        "vocab_size": source.tokenizer.vocab_size,
        **origin,
        "splits": written.sides,
        "files": {name: _describe_file(folder, name) for name in names},
    }
    files.replace(folder / INDEX, json.dumps(index, indent=1) + "\n")


def _describe_file(folder: Path, name: str) -> dict[str, Any]:
    paths = find_shards(folder, name)
    return {"sha256": shards_digest(paths), **({"shards": len(paths)} if len(paths) > 1 else {})}
