"""The second pass over a stream: ids behind one another onto the disk, and a journal of how far it is.

    .stream/survey.npz     the first pass
    .stream/train.bin, .stream/train.docs.bin, the same of validation, without an end
    .stream/journal.json   what of them is sound, of which files, and where in the source to go on

A piece is on the disk before the journal says so. After a kill the files are cut to what it says, and the
source is read on from there without being tokenized again; of another source, or other settings, it is begun
anew. Finished files take their names at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kssm_mlx import files
from kssm_mlx.data.index import SPLITS
from kssm_mlx.data.streams.cuts import encode_pieces
from kssm_mlx.data.streams.documents import Stream
from kssm_mlx.data.streams.survey import Plan, Survey, kept_documents, survey
from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.errors import DataError
from kssm_mlx.parsing import parse_json

WORK, JOURNAL, SURVEY = ".stream", "journal.json", "survey.npz"
EVERY = 1 << 26  # bytes of text between two entries of the journal
STARTS = np.dtype("<u8")
Advance = Callable[[int], None]
Lost = Callable[[str, str], int]


@dataclass
class Sizes:
    """What is written of one side. gone: characters that decoding does not give back, of `characters`."""

    tokens: int = 0
    documents: int = 0
    utf8_bytes: int = 0
    characters: int = 0
    gone: int = 0

    def describe(self) -> dict[str, float]:
        lost = self.gone / max(1, self.characters)
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "utf8_bytes": self.utf8_bytes,
            "lost": lost,
        }


@dataclass
class Place:
    """Where to go on: at character `at` of document `number`, which begins behind `before` characters.
    opened: whether the part of the document that is being written has its first token.
    """

    number: int = 0
    before: int = 0
    at: int = 0
    opened: bool = False
    sides: list[Sizes] = field(default_factory=lambda: [Sizes(), Sizes()])


def survey_once(stream: Stream, folder: Path, advance: Advance) -> Survey:
    """The survey, kept in the folder of work for who goes on; of changed files it is made anew."""
    path, stamp = folder / WORK / SURVEY, json.dumps(stream.stamp)
    with suppress(OSError, ValueError, KeyError), np.load(path, allow_pickle=False) as kept:
        if str(kept["stamp"]) == stamp:
            advance(stream.nbytes)
            return Survey.from_arrays(kept)
    found = survey(stream, advance)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"new-{SURVEY}")
    np.savez(temporary, stamp=np.array(stamp), **found.to_arrays())
    os.replace(temporary, path)
    return found


def write_stream(
    stream: Stream,
    found: Survey,
    plan: Plan,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: np.dtype,
    *,
    special_tokens: bool,
    lost: Lost,
    advance: Advance,
    identity: dict[str, Any],
) -> dict[str, dict[str, float]]:
    """Write the ids and starts of both sides into `folder`; returns their sizes by name.

    lost: characters of a text that are not in what its ids decode to. identity: what the ids depend on
    beside the stream.
    Raises: DataError for ids outside the vocabulary, or a side without a token.
    """
    key = {"stream": stream.stamp, **identity}
    work = folder / WORK
    place = _read_journal(work / JOURNAL, key)
    with _Files(work, dtype, place) as out:
        written = 0
        for side, text, ids in _pieces(stream, found, plan, tokenizer, special_tokens, place, advance):
            _check(ids, tokenizer.vocab_size, folder / f"{SPLITS[side]}.bin")
            _append(out, place, side, text, ids, tokenizer, lost)
            nbytes = len(text.encode())
            place.sides[side].utf8_bytes += nbytes
            written += nbytes
            advance(nbytes)
            if written >= EVERY:
                out.sync()
                _write_journal(work / JOURNAL, key, place)
                written = 0
        out.sync()
    for name, sizes in zip(SPLITS, place.sides, strict=True):
        if not sizes.tokens:
            raise DataError(f"{folder / f'{name}.bin'} would hold no token; give more text")
    for name in _names():
        os.replace(work / name, folder / name)
    files.sync_folder(folder)
    shutil.rmtree(work)
    return {name: sizes.describe() for name, sizes in zip(SPLITS, place.sides, strict=True)}


def _pieces(
    stream: Stream, found: Survey, plan: Plan, tokenizer: Tokenizer, special: bool, place: Place, advance
) -> Iterator[tuple[int, str, np.ndarray]]:
    """(side, text, ids) from `place` on, which is moved along as they are taken."""
    for number, document in enumerate(kept_documents(stream, found)):
        if number < place.number:
            advance(document.nbytes)
            continue
        size = int(found.characters[number])
        reader, begin = _Reader(document.pieces()), 0
        for side, length in plan.sides(number, place.before, size):
            end = begin + length
            if place.at < end:
                skipped = reader.skip(place.at - begin)
                advance(skipped)
                for text, ids in encode_pieces(reader.take(end - place.at), tokenizer, special):
                    place.at += len(text)
                    yield side, text, ids
                place.opened = False
            else:
                place.opened = place.opened and place.at > end  # it was of this part, which is whole
                advance(reader.skip(length))
            begin = end
        place.number, place.before, place.at = number + 1, place.before + size, 0


class _Reader:
    """Pieces of a text, taken by the number of their characters."""

    def __init__(self, pieces: Iterator[str]):
        self._pieces, self._left = pieces, ""

    def take(self, length: int) -> Iterator[str]:
        """The next `length` characters, as they come."""
        while length > 0:
            text = self._left or next(self._pieces, None)
            if text is None:
                raise DataError("the text became shorter while it was read; prepare the data again")
            head, self._left = text[:length], text[length:]
            length -= len(head)
            if head:
                yield head

    def skip(self, length: int) -> int:
        """Leave out `length` characters; returns their bytes."""
        return sum(len(text.encode()) for text in self.take(length))


class _Files:
    """The files that grow, cut to what the journal says of them."""

    def __init__(self, work: Path, dtype: np.dtype, place: Place):
        self._work, self.dtype, self._open = work, dtype, {}
        work.mkdir(parents=True, exist_ok=True)
        for name, sizes in zip(SPLITS, place.sides, strict=True):
            ends = {"bin": sizes.tokens * dtype.itemsize, "docs.bin": sizes.documents * STARTS.itemsize}
            for kind, end in ends.items():
                self._open[f"{name}.{kind}"] = _cut_to(work / f"{name}.{kind}", end)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_) -> None:
        for file in self._open.values():
            file.close()

    def append(self, name: str, array: np.ndarray) -> None:
        self._open[name].write(array.tobytes())

    def sync(self) -> None:
        for file in self._open.values():
            file.flush()
            files.sync(file.fileno())


def _cut_to(path: Path, end: int) -> BinaryIO:
    """A file open at its end, which is there."""
    path.touch()
    file = open(path, "r+b")  # noqa: SIM115  it stays open for all pieces
    file.truncate(end)
    file.seek(end)
    return file


def _append(out: _Files, place: Place, side: int, text: str, ids: np.ndarray, tokenizer, lost: Lost) -> None:
    """One piece: the separator and the start before the first of a document."""
    name, sizes = SPLITS[side], place.sides[side]
    opening = [] if tokenizer.separator_id is None or place.opened else [tokenizer.separator_id]
    if not place.opened and (opening or ids.size):
        out.append(f"{name}.docs.bin", np.array([sizes.tokens], STARTS))
        sizes.documents += 1
        place.opened = True
    row = np.concatenate([opening, ids]).astype(out.dtype)
    out.append(f"{name}.bin", row)
    sizes.tokens += row.size
    sizes.characters += len(text)
    sizes.gone += lost(text, tokenizer.decode(ids.tolist()))


def _check(ids: np.ndarray, vocab_size: int, path: Path) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise DataError(
            f"{path} has ids from {ids.min()} to {ids.max()}; expected 0 to {vocab_size - 1}, the vocabulary"
        )


def _names() -> list[str]:
    return [f"{name}.{kind}" for name in SPLITS for kind in ("bin", "docs.bin")]


def _read_journal(path: Path, key: dict[str, Any]) -> Place:
    """Where to go on; the beginning where nothing of this was begun, or not all of it is there."""
    try:
        table = parse_json(path.read_text("utf-8"))
        if table["key"] != key or not all((path.parent / name).is_file() for name in _names()):
            return Place()
        kept = table["place"]
        return Place(**{**kept, "sides": [Sizes(**sizes) for sizes in kept["sides"]]})
    except (OSError, ValueError, KeyError, TypeError):
        return Place()


def _write_journal(path: Path, key: dict[str, Any], place: Place) -> None:
    files.replace(path, json.dumps({"key": key, "place": asdict(place)}, indent=1) + "\n")
