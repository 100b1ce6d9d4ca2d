"""The second pass over a stream: ids behind one another onto the disk, and a journal of how far it is.

    survey.npz                          the first pass
    train.bin.0, train.docs.bin.0, ...  ids and starts, the same of validation; see `shards.Growing`
    journal.json                        what of them is sound, of which files, where in the source to go on

A piece is on the disk before the journal says so. After a kill the files are cut to what it says, and the
source is read on from there without being tokenized again; of another source, or other settings, it is begun
anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kssm_mlx import files
from kssm_mlx.data import shards
from kssm_mlx.data.index import SPLITS
from kssm_mlx.data.shards import ONE_FILE, Growing
from kssm_mlx.data.streams.cuts import encode_pieces
from kssm_mlx.data.streams.documents import Stream
from kssm_mlx.data.streams.survey import Plan, Survey, survey
from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.errors import DataError
from kssm_mlx.parsing import parse_json

JOURNAL, SURVEY = "journal.json", "survey.npz"
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

    @property
    def lost(self) -> float:
        return self.gone / max(1, self.characters)


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


class Grown(NamedTuple):
    """One side of a stream on the disk."""

    ids: Growing
    starts: Growing
    sizes: Sizes

    def sync(self) -> None:
        self.ids.sync()
        self.starts.sync()

    def close(self) -> None:
        self.ids.close()
        self.starts.close()


def survey_once(stream: Stream, work: Path, advance: Advance) -> Survey:
    """The survey, kept in `work` for who goes on; of changed files it is made anew."""
    path, stamp = work / SURVEY, json.dumps(stream.stamp)
    with suppress(OSError, ValueError, KeyError), np.load(path, allow_pickle=False) as kept:
        if str(kept["stamp"]) == stamp:
            advance(stream.nbytes)
            return Survey.from_arrays(kept)
    found = survey(stream, advance)
    save_arrays(path, {"stamp": np.array(stamp), **found.to_arrays()})
    return found


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """An .npz in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"new-{path.name}")
    np.savez(temporary, **arrays)
    os.replace(temporary, path)


def write_stream(
    stream: Stream,
    found: Survey,
    plan: Plan,
    tokenizer: Tokenizer,
    work: Path,
    dtype: np.dtype,
    *,
    special_tokens: bool,
    lost: Lost,
    advance: Advance,
    identity: dict[str, Any],
) -> tuple[Grown, Grown]:
    """Write the ids and starts of both sides into `work`.

    lost: characters of a text that are not in what its ids decode to. identity: what the ids depend on
    beside the stream.
    Raises: DataError for ids outside the vocabulary, or a side without a token.
    """
    key = {"stream": stream.stamp, "shard": shards.MOST, **identity}
    place, sides = _go_on(work, key, dtype)

    written = 0
    try:
        for side, text, ids in _pieces(stream, found, plan, tokenizer, special_tokens, place, advance):
            _check(ids, tokenizer.vocab_size, f"{stream.source}, {SPLITS[side]}")
            _append(sides[side], place, text, ids, tokenizer, lost)
            nbytes = len(text.encode())
            sides[side].sizes.utf8_bytes += nbytes
            written += nbytes
            advance(nbytes)
            if written >= EVERY:
                for own in sides:
                    own.sync()
                _write_journal(work, key, place)
                written = 0
    finally:
        for own in sides:
            own.close()
    _write_journal(work, key, place)
    for name, side in zip(SPLITS, sides, strict=True):
        if not side.sizes.tokens:
            raise DataError(f"{stream.source}: its {name} side would hold no token; give more text")
    return sides


def _pieces(
    stream: Stream, found: Survey, plan: Plan, tokenizer: Tokenizer, special: bool, place: Place, advance
) -> Iterator[tuple[int, str, np.ndarray]]:
    """(side, text, ids) from `place` on, which is moved along as they are taken."""
    for number, document in enumerate(stream.documents()):
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


def _append(side: Grown, place: Place, text: str, ids: np.ndarray, tokenizer, lost: Lost) -> None:
    """One piece: the separator and the start before the first of a document."""
    sizes = side.sizes
    opening = [] if tokenizer.separator_id is None or place.opened else [tokenizer.separator_id]
    if not place.opened and (opening or ids.size):
        side.starts.append(np.array([sizes.tokens], STARTS))
        sizes.documents += 1
        place.opened = True
    side.ids.append(np.concatenate([opening, ids]))
    sizes.tokens = side.ids.count
    sizes.characters += len(text)
    sizes.gone += lost(text, tokenizer.decode(ids.tolist()))


def _check(ids: np.ndarray, vocab_size: int, where: str) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise DataError(
            f"{where} has ids from {ids.min()} to {ids.max()}; expected 0 to {vocab_size - 1}, the vocabulary"
        )


def _go_on(work: Path, key: dict[str, Any], dtype: np.dtype) -> tuple[Place, tuple[Grown, Grown]]:
    """Where to go on, and the files as they were there; the beginning where nothing of this was begun, or not
    all of it is there.
    """
    try:
        table = parse_json((work / JOURNAL).read_text("utf-8"))
        kept = table["place"]
        if table["key"] == key:
            place = Place(**{**kept, "sides": [Sizes(**sizes) for sizes in kept["sides"]]})
            return place, _open_sides(work, place, dtype)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return (place := Place()), _open_sides(work, place, dtype)


def _open_sides(work: Path, place: Place, dtype: np.dtype) -> tuple[Grown, Grown]:
    """Raises: OSError for files that have less than `place` says."""
    train, validation = (
        open_side(work, name, dtype, sizes) for name, sizes in zip(SPLITS, place.sides, strict=True)
    )
    return train, validation


def open_side(work: Path, name: str, dtype: np.dtype, sizes: Sizes | None = None) -> Grown:
    """The files of a side behind what `sizes` says; the beginning where nothing is said."""
    sizes = sizes or Sizes()
    ids = Growing(work, f"{name}.bin", dtype, sizes.tokens)
    return Grown(ids, Growing(work, f"{name}.docs.bin", STARTS, sizes.documents, most=ONE_FILE), sizes)


def _write_journal(work: Path, key: dict[str, Any], place: Place) -> None:
    files.replace(work / JOURNAL, json.dumps({"key": key, "place": asdict(place)}, indent=1) + "\n")
