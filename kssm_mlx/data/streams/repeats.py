"""A stream without what it says twice: what `corpora.repeats.remove_repeated_paragraphs` leaves of it.

A paragraph goes that shares a passage of 64 bytes with an earlier one that stays. To say which, the text is
read twice, and what is found lies in files that fit into memory one at a time:

1. The anchor of a passage is the run of 32 bytes in it with the least hash. Equal passages have equal
   anchors, and neighbours mostly the same one, one for some 17 bytes: which anchors come twice?
2. Of passages with such an anchor, the hash and the paragraph: sorted, they give the groups of paragraphs
   that share a passage. From the first paragraph on, who is in a group of which one stays already goes.

In memory at once are the longest paragraph, the anchors that come twice, and the groups, each once: they grow
with what is repeated and not with the text. Passages are compared by 64-bit hashes: that two different ones
are taken for the same somewhere in n of them has a probability of about n^2 / 2^65, 3e-5 for 32 MB.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kssm_mlx.data.corpora.repeats import REPEAT
from kssm_mlx.data.passages import hash_passages
from kssm_mlx.data.streams.documents import Document, Stream
from kssm_mlx.data.streams.writer import save_arrays

ANCHOR = REPEAT // 2
BLOCK = 1 << 18  # bytes whose passages are hashed at once
SORTED = 1 << 25  # bytes of a file that is sorted at once
MOST_BITS = 10
GAP = "\n\n"
REPEATS = "repeats.npz"


@dataclass(frozen=True)
class WithoutRepeats:
    """A stream whose paragraphs are numbered through. firsts [documents], the number of the first paragraph
    of each; gone, the numbers of those that are left out, ascending; nbytes_left [documents], of what is left
    of each, 0 where that is blank.
    """

    stream: Stream
    firsts: np.ndarray
    gone: np.ndarray
    nbytes_left: np.ndarray

    @property
    def name(self) -> str:
        return self.stream.name

    @property
    def source(self) -> str:
        return self.stream.source

    @property
    def licence(self) -> str:
        return self.stream.licence

    @property
    def whole(self) -> bool:
        return self.stream.whole

    @property
    def nbytes(self) -> int:
        return int(self.nbytes_left.sum())

    @property
    def stamp(self) -> list[Any]:
        return ["without repeats", *self.stream.stamp]

    def documents(self) -> Iterator[Document]:
        for number, document in enumerate(self.stream.documents()):
            if nbytes := int(self.nbytes_left[number]):
                first = int(self.firsts[number])
                pieces = partial(left_of, document, first, self.gone)
                yield Document(nbytes, pieces, document.held)


def without_repeats(stream: Stream, work: Path) -> WithoutRepeats:
    """What is left of a stream, kept in `work` for who goes on; of changed files it is found anew."""
    path, stamp = work / REPEATS, json.dumps(stream.stamp)
    with suppress(OSError, ValueError, KeyError), np.load(path, allow_pickle=False) as kept:
        if str(kept["stamp"]) == stamp:
            return WithoutRepeats(stream, kept["firsts"], kept["gone"], kept["nbytes_left"])
    scratch = work / "repeats"
    shutil.rmtree(scratch, ignore_errors=True)
    gone = _find_repeats(stream, scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    arrays = {"gone": gone, **_measure(stream, gone)}
    save_arrays(path, {"stamp": np.array(stamp), **arrays})
    return WithoutRepeats(stream, **arrays)


def left_of(document: Document, first: int, gone: np.ndarray) -> Iterator[str]:
    """What is left of a document whose first paragraph is number `first`, in pieces."""
    gap = ""
    for paragraph in _keep_paragraphs(document, first, gone):
        if paragraph:
            yield gap + paragraph
            gap = GAP


def _keep_paragraphs(document: Document, first: int, gone: np.ndarray) -> Iterator[str]:
    """Each paragraph of a document, empty where it goes."""
    for number, paragraph in enumerate(paragraphs(document), first):
        at = np.searchsorted(gone, number)
        yield "" if at < gone.size and gone[at] == number else paragraph


def paragraphs(document: Document) -> Iterator[str]:
    """What `split` makes of the whole text; a paragraph is in memory whole."""
    left = ""
    for piece in document.pieces():
        looked = max(0, len(left) - 1)
        left += piece
        if left.find(GAP, looked) >= 0:
            *whole, left = left.split(GAP)
            yield from whole
    yield left


def _measure(stream: Stream, gone: np.ndarray) -> dict[str, np.ndarray]:
    """firsts and nbytes_left of `WithoutRepeats`."""
    firsts, sizes, number = [], [], 0
    for document in stream.documents():
        firsts.append(number)
        nbytes, blank = 0, True
        for paragraph in _keep_paragraphs(document, number, gone):
            number += 1
            if paragraph:
                nbytes += len(paragraph.encode()) + len(GAP) * (nbytes > 0)
                blank = blank and not paragraph.strip()
        sizes.append(0 if blank else nbytes)
    return {"firsts": np.array(firsts, np.int64), "nbytes_left": np.array(sizes, np.int64)}


def _find_repeats(stream: Stream, scratch: Path) -> np.ndarray:
    """The numbers of the paragraphs that go, ascending."""
    anchors = _Scattered(scratch / "anchors", stream.nbytes)
    for block in _read(stream):
        anchors.add(block.anchors[block.begins_run, None])
    known = np.concatenate(
        [_list_repeats(records[:, 0]) for records in anchors.read()] or [np.empty(0, np.uint64)]
    )
    passages = _Scattered(scratch / "passages", 16 * stream.nbytes)
    for block in _read(stream):
        runs = _find_known(known, block.anchors[block.begins_run])
        chosen = runs[np.cumsum(block.begins_run) - 1]
        passages.add(np.stack([block.hashes[chosen], block.paragraphs[chosen]], axis=1))
    groups: dict[int, np.ndarray] = {}
    for records in passages.read():
        for size, found in _groups(records).items():
            old = groups.get(size, found[:0])
            groups[size] = _unique_rows(np.concatenate([old, found]))
    return _choose(list(groups.values()))


class _Block(NamedTuple):
    """Passages in their order. Shapes: all [n], uint64; begins_run bool, whether the anchor is another than
    that of the passage before.
    """

    hashes: np.ndarray
    anchors: np.ndarray
    paragraphs: np.ndarray
    begins_run: np.ndarray


def _read(stream: Stream) -> Iterator[_Block]:
    """The passages of all paragraphs."""
    parts: list[tuple[int, bytes]] = []
    number = size = 0
    for document in stream.documents():
        for paragraph in paragraphs(document):
            raw = paragraph.encode()
            for begin in range(0, len(raw) - REPEAT + 1, BLOCK):
                parts.append((number, raw[begin : begin + BLOCK + REPEAT - 1]))
                size += len(parts[-1][1])
                if size >= BLOCK:
                    yield _hash(parts)
                    parts, size = [], 0
            number += 1
    if parts:
        yield _hash(parts)


def _hash(parts: list[tuple[int, bytes]]) -> _Block:
    """The passages within parts of at least `REPEAT` bytes; (paragraph, bytes) of each."""
    raw = np.frombuffer(b"".join(part for _, part in parts), np.uint8)
    owners = np.repeat(np.arange(len(parts)), [len(part) for _, part in parts])
    within = owners[: 1 - REPEAT] == owners[REPEAT - 1 :]
    anchors, width = hash_passages(raw, ANCHOR), 1
    while width < REPEAT - ANCHOR + 1:
        step = min(width, REPEAT - ANCHOR + 1 - width)
        anchors, width = np.minimum(anchors[:-step], anchors[step:]), width + step
    anchors, owners = anchors[within], owners[: 1 - REPEAT][within]
    begins_run = np.append(True, (anchors[1:] != anchors[:-1]) | (owners[1:] != owners[:-1]))
    paragraphs = np.array([number for number, _ in parts], np.uint64)[owners]
    return _Block(hash_passages(raw, REPEAT)[within], anchors, paragraphs, begins_run)


class _Scattered:
    """Rows of 64-bit numbers in files by the first bits of the first number, so that equal ones meet."""

    def __init__(self, folder: Path, nbytes: int):
        self._folder, self._width = folder, 0
        self._bits = np.uint64(min(MOST_BITS, max(1, (nbytes // SORTED).bit_length())))
        folder.mkdir(parents=True)

    def add(self, rows: np.ndarray) -> None:
        """Shapes: [n, width], the same width each time."""
        self._width = rows.shape[1]
        homes = rows[:, 0] >> (np.uint64(64) - self._bits)
        order = np.argsort(homes, kind="stable")
        found, begins = np.unique(homes[order], return_index=True)
        for home, own in zip(found.tolist(), np.split(rows[order], begins[1:]), strict=False):
            with open(self._folder / f"{home:04d}", "ab") as f:
                f.write(own.tobytes())

    def read(self) -> Iterator[np.ndarray]:
        """The rows of each file, which is deleted."""
        for path in sorted(self._folder.iterdir()):
            yield np.fromfile(path, np.uint64).reshape(-1, self._width)
            path.unlink()


def _find_known(known: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Whether each number is among the known, which are ascending."""
    if not known.size:
        return np.zeros(numbers.size, bool)
    return known[np.searchsorted(known, numbers).clip(max=known.size - 1)] == numbers


def _unique_rows(rows: np.ndarray) -> np.ndarray:
    """As `np.unique` along the first axis, which compares rows as strings of bytes and is far slower."""
    rows = rows[np.lexsort(rows.T[::-1])]
    return rows[np.append(True, (rows[1:] != rows[:-1]).any(axis=1))[: len(rows)]]


def _list_repeats(numbers: np.ndarray) -> np.ndarray:
    """The numbers that come more than once, ascending."""
    found, counts = np.unique(numbers, return_counts=True)
    return found[counts > 1]


def _groups(records: np.ndarray) -> dict[int, np.ndarray]:
    """Of (hash, paragraph), the different groups of paragraphs that share a hash, by their size.

    Shapes: records [n, 2] -> int64 [groups, size], each ascending.
    """
    rows = _unique_rows(records)
    begins = np.flatnonzero(np.append(True, rows[1:, 0] != rows[:-1, 0]))
    sizes = np.diff(np.append(begins, len(rows)))
    found = {}
    for size in np.unique(sizes[sizes > 1]).tolist():
        places = begins[sizes == size][:, None] + np.arange(size)
        found[size] = _unique_rows(rows[places, 1].astype(np.int64))
    return found


def _choose(groups: list[np.ndarray]) -> np.ndarray:
    """Who goes, ascending: from the first paragraph on, whoever is in a group of which one stays already."""
    if not groups:
        return np.empty(0, np.int64)
    members = np.concatenate([group.ravel() for group in groups])
    sizes = np.concatenate([np.full(len(group), group.shape[1]) for group in groups])
    order = np.argsort(members, kind="stable")
    of = np.repeat(np.arange(sizes.size), sizes)[order]
    numbers, begins = np.unique(members[order], return_index=True)
    taken, gone = np.zeros(sizes.size, bool), []
    for number, begin, end in zip(numbers.tolist(), begins, [*begins[1:], of.size], strict=True):
        own = of[begin:end]
        if taken[own].any():
            gone.append(number)
        else:
            taken[own] = True
    return np.array(gone, np.int64)
