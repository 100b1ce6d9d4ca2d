"""Documents in pieces: what `corpora.open_corpus` reads at once, block by block."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kssm_mlx.data.corpora.corpus import Corpus
from kssm_mlx.data.corpora.sources import GIVEN, find_texts, open_corpus, read_record
from kssm_mlx.data.corpora.text_files import not_utf8, unreadable
from kssm_mlx.errors import DataError

BLOCK = 1 << 20  # bytes read at once
BOM = b"\xef\xbb\xbf"
LARGE = 1 << 25  # bytes of a source that is not read at once
KINDS = ("file", "dir", "jsonl")


class Document(NamedTuple):
    """nbytes: of its text in UTF-8. pieces: reads it, each time from the beginning. held: whether it is of
    the corpus's own validation text.
    """

    nbytes: int
    pieces: Callable[[], Iterator[str]]
    held: bool = False

    @property
    def blank(self) -> bool:
        return not any(piece.strip() for piece in self.pieces())


class Stream(Protocol):
    """A source of documents; name, source, licence and whole as in `Corpus`."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def whole(self) -> bool: ...

    @property
    def nbytes(self) -> int:
        """About what is read of it."""
        ...

    @property
    def stamp(self) -> list[Any]:
        """What changes with the text."""
        ...

    def documents(self) -> Iterator[Document]:
        """Those that are not blank, in the order in which `open_corpus` has them, those held out last."""
        ...


@dataclass(frozen=True)
class FileStream:
    """Text files. kind: file, dir or jsonl; paths: in their order."""

    source: str
    kind: str
    paths: tuple[Path, ...]
    licence: str = GIVEN
    whole: bool = False

    @property
    def nbytes(self) -> int:
        return sum(_stat(path).st_size for path in self.paths)

    @property
    def stamp(self) -> list[Any]:
        stats = ((path, _stat(path)) for path in self.paths)
        return [[str(path.absolute()), s.st_size, s.st_mtime_ns, s.st_ino] for path, s in stats]

    @property
    def name(self) -> str:
        return Path(self.source.partition(":")[2]).name

    def documents(self) -> Iterator[Document]:
        found = _records(self.paths[0]) if self.kind == "jsonl" else map(_whole_file, self.paths)
        return (document for document in found if not document.blank)


@dataclass(frozen=True)
class HeldText:
    """A corpus that is read at once, beside others that are not."""

    corpus: Corpus

    @property
    def name(self) -> str:
        return self.corpus.name

    @property
    def source(self) -> str:
        return self.corpus.source

    @property
    def licence(self) -> str:
        return self.corpus.licence

    @property
    def whole(self) -> bool:
        return self.corpus.whole

    @property
    def nbytes(self) -> int:
        return sum(document.nbytes for document in self.documents())

    @property
    def stamp(self) -> list[Any]:
        return [self.corpus.source, self.corpus.digest, len(self.corpus.documents)]

    def documents(self) -> Iterator[Document]:
        for held, texts in ((False, self.corpus.documents), (True, self.corpus.validation)):
            yield from (_in_memory(text, held) for text in texts)


def open_streams(sources: Sequence[str]) -> list[Stream]:
    """The streams of sources that are large together; none where all are read at once.

    Raises: as `open_corpus` of those beside it; DataError for files that cannot be looked at.
    """
    found = [_open_files(source) for source in sources]
    if not any(found) or sum(stream.nbytes for stream in found if stream) < LARGE:
        return []
    return [stream or HeldText(open_corpus(source)) for source, stream in zip(sources, found, strict=True)]


def _open_files(source: str) -> FileStream | None:
    """The files of a source of text files; None where they are not there, or it is of another kind."""
    kind, _, target = source.partition(":")
    if kind not in KINDS or not target:
        return None
    path = Path(target).expanduser()
    stream = FileStream(source, kind, tuple(find_texts(path)) if kind == "dir" else (path,))
    return stream if all(p.is_file() for p in stream.paths) else None


def _in_memory(text: str, held: bool = False) -> Document:
    return Document(len(text.encode()), lambda: iter((text,)), held)


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
            yield _in_memory(read_record(path, number, line))


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
