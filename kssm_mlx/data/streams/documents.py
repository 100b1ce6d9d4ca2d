"""Documents in pieces: what `corpora.open_corpus` reads at once, block by block."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kssm_mlx.data.corpora.sources import find_texts, read_record
from kssm_mlx.data.corpora.text_files import not_utf8, unreadable
from kssm_mlx.errors import DataError

BLOCK = 1 << 20  # bytes read at once
BOM = b"\xef\xbb\xbf"
LARGE = 1 << 25  # bytes of a source that is not read at once
KINDS = ("file", "dir", "jsonl")


class Document(NamedTuple):
    """nbytes: of its text in UTF-8. pieces: reads it, each time from the beginning."""

    nbytes: int
    pieces: Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Stream:
    """A source of text files. kind: file, dir or jsonl; paths: its files in their order."""

    source: str
    kind: str
    paths: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        return sum(_stat(path).st_size for path in self.paths)

    @property
    def stamp(self) -> list[list]:
        """What changes with the files."""
        stats = ((path, _stat(path)) for path in self.paths)
        return [[str(path.absolute()), s.st_size, s.st_mtime_ns, s.st_ino] for path, s in stats]

    @property
    def name(self) -> str:
        return Path(self.source.partition(":")[2]).name

    def documents(self) -> Iterator[Document]:
        """All of them, blank ones too, in the order in which `open_corpus` has them."""
        if self.kind == "jsonl":
            yield from _records(self.paths[0])
        else:
            yield from (_whole_file(path) for path in self.paths)


def open_stream(source: str) -> Stream | None:
    """The stream of a source that is large; None for one that is read at once.

    Raises: DataError for a folder without text, or files that cannot be looked at.
    """
    kind, _, target = source.partition(":")
    if kind not in KINDS or not target:
        return None
    path = Path(target).expanduser()
    stream = Stream(source, kind, tuple(find_texts(path)) if kind == "dir" else (path,))
    return stream if all(p.is_file() for p in stream.paths) and stream.nbytes >= LARGE else None


def _whole_file(path: Path) -> Document:
    try:
        with open(path, "rb") as f:
            marked = f.read(len(BOM)) == BOM
    except OSError as e:
        raise unreadable(path, e) from None
    return Document(_stat(path).st_size - len(BOM) * marked, lambda: _pieces(path))


def _pieces(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file, without a byte order mark. Raises: DataError as `read_text`."""
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    for block in _blocks(path):
        if (nul := block.find(b"\0")) >= 0:
            raise DataError(f"{path} is not text: byte {at + nul} is NUL; expected UTF-8 text")
        text = _decode(path, decoder, block, at)
        yield text.removeprefix("\ufeff") if at == 0 else text
        at += len(block)
    yield _decode(path, decoder, b"", at)


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as f:
            while block := f.read(BLOCK):
                yield block
    except OSError as e:
        raise unreadable(path, e) from None


def _decode(path: Path, decoder: codecs.IncrementalDecoder, block: bytes, at: int) -> str:
    """The characters that a block completes; an empty one ends the text."""
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as e:
        raise not_utf8(path, at - pending + e.start, e.object[e.start], e.reason) from None


def _records(path: Path) -> Iterator[Document]:
    """The texts of a JSONL file; a line is in memory whole."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            text = read_record(path, number, line)
            yield Document(len(text.encode()), lambda text=text: iter((text,)))


def _lines(path: Path) -> Iterator[str]:
    left = ""
    for piece in _pieces(path):
        *lines, left = (left + piece).split("\n")
        yield from lines
    yield left


def _stat(path: Path):
    try:
        return path.stat()
    except OSError as e:
        raise unreadable(path, e) from None
