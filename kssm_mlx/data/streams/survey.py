"""The first pass over a stream: what must be known of all documents before the first token is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kssm_mlx.data.splits import explain_empty_side, hold_out, refuse_other_split, resolve_method
from kssm_mlx.data.streams.cuts import cut_at_lines
from kssm_mlx.data.streams.documents import Stream
from kssm_mlx.errors import DataError

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Survey:
    """Of the documents: characters [documents], keys [documents], equal for equal texts; held [documents],
    which are the corpus's own validation text; digest, of `Corpus.digest`.
    """

    characters: np.ndarray
    keys: np.ndarray
    held: np.ndarray
    digest: str

    def to_arrays(self) -> dict[str, Any]:
        return {**vars(self), "digest": np.array(self.digest)}

    @classmethod
    def from_arrays(cls, arrays: Any) -> Survey:
        names = ("characters", "keys", "held")
        return cls(**{name: arrays[name] for name in names}, digest=str(arrays["digest"]))


@dataclass(frozen=True)
class Plan:
    """Which characters are of which side. share: what is held out. held: [documents] bool, of whole
    documents; left: of "contiguous", characters of all together before the cut.
    """

    method: str
    share: float
    held: np.ndarray | None = None
    left: int = 0

    def sides(self, number: int, before: int, size: int) -> list[tuple[int, int]]:
        """(side, characters) of the parts of document `number`, which begins behind `before` characters."""
        if self.held is not None:
            return [(int(self.held[number]), size)]
        head = min(max(self.left - before, 0), size)
        return [(side, part) for side, part in ((0, head), (1, size - head)) if part]


def survey(stream: Stream, advance: Advance) -> Survey:
    """Read everything once. Raises: DataError as reading does, or for a source without text."""
    whole, rows = hashlib.sha256(), []
    for document in stream.documents():
        own, size = hashlib.sha256(), 0
        whole.update(document.nbytes.to_bytes(8, "little"))
        for piece in document.pieces():
            raw = piece.encode()
            own.update(raw)
            whole.update(raw)
            size += len(piece)
            advance(len(raw))
        rows.append((size, own.hexdigest()[:32], document.held))
    if not rows:
        raise DataError(f"{stream.source} holds no text; expected at least one document that is not blank")
    sizes, keys, held = zip(*rows, strict=True)
    return Survey(np.array(sizes, np.int64), np.array(keys), np.array(held), whole.hexdigest())


def plan(stream: Stream, found: Survey, method: str, share: float, seed: int) -> Plan:
    """What `splits.split_corpus` does, by sizes and keys.

    Raises: ConfigError for a corpus that comes split and a method other than "auto", DataError if one side
        would be empty.
    """
    total = int(found.characters.sum())
    if found.held.any():
        refuse_other_split(stream.source, method)
        return Plan("official", int(found.characters[found.held].sum()) / total, held=found.held)
    method = resolve_method(method, len(found.keys), stream.whole)
    if method == "documents":
        sizes = dict(zip(found.keys.tolist(), found.characters.tolist()))
        held_out = hold_out(found.keys.tolist(), sizes.__getitem__, share, seed)
        held = np.isin(found.keys, list(held_out))
        empty = held.all() or not held.any()
        made = Plan(method, share, held=held)
    else:
        made = Plan(method, share, left=int((1 - share) * total))
        empty = not 0 < made.left < total
    if empty:
        raise explain_empty_side(len(found.keys), total, method, share)
    return made


class Texts:
    """What a tokenizer is built from: parts of all documents, or of what is trained on alone; a number of
    documents for a length.
    """

    def __init__(self, stream: Stream, found: Survey, of: Plan | None = None):
        self._stream, self._found, self._plan = stream, found, of

    def __len__(self) -> int:
        return len(self._found.keys)

    def __iter__(self) -> Iterator[str]:
        before = 0
        for number, document in enumerate(self._stream.documents()):
            size = int(self._found.characters[number])
            parts = self._plan.sides(number, before, size) if self._plan else [(0, size)]
            wanted = next((length for side, length in parts if side == 0), 0)
            yield from cut_at_lines(first_characters(document.pieces(), wanted))
            before += size


def first_characters(pieces: Iterable[str], length: int) -> Iterator[str]:
    """The first `length` characters; no piece is read that has none of them."""
    if length:
        for piece in pieces:
            yield piece[:length]
            length -= min(len(piece), length)
            if not length:
                return
