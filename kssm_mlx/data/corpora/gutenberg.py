"""Project Gutenberg texts as books: under the title that each says it has, without the frame around it.

A folder holds texts as they are downloaded: `pg1342.txt`, `1342-0.txt`, `1342 Pride and Prejudice.txt`. The
number and the title in a file's name, and in Gutenberg's `pg_catalog.csv` if it lies beside them, must be
those of the header: copied lists gave one number to four works. `books.py` then keeps each book once.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from kssm_mlx.data.corpora.books import Book, Shelf, each_once, split_words
from kssm_mlx.data.corpora.text_files import read_text, refuse_replaced, text_files
from kssm_mlx.errors import DataError

LICENCE = "public domain in the USA (Project Gutenberg)"
CATALOGUE = "pg_catalog.csv"

_MARKER = r"^\*{3} ?%s OF (?:THE|THIS) PROJECT GUTENBERG EBOOK\b[^*]{0,300}\*{3}"
_START, _END = (re.compile(_MARKER % word, re.M | re.I) for word in ("START", "END"))
_TITLE = re.compile(r"^Title:[ \t]*(\S.*(?:\n[ \t]+\S.*)*)", re.M)
_NUMBER = re.compile(r"\[(?:EBook|EText) #(\d+)\]", re.I)
_NAME = re.compile(r"(?:pg)?(\d+)(?:-\d+)?(?![^\W_])[\W_]*(.*)")
_ARTICLES = ("a", "an", "the")

_CREDIT = re.compile(r"(?:produced|transcribed|prepared|e-?text prepared|this e-?text was \w+) by\b", re.I)
_CLOSING = re.compile(r"end of (?:the |this )?project gutenberg", re.I)
_PAGE_LINE = re.compile(r"[\[{(] *(?:pg?\.?|page)? *\d+ *[\]})]|(?:pg?\.|page) *\d+|-+ *\d+ *-+", re.I)
_ROMAN = r"(?=[MDCLXVI])M{0,3}(?:C[MD]|D?C{0,3})(?:X[CL]|L?X{0,3})(?:I[XV]|V?I{0,3})"
_NUMBER_LINE = re.compile(rf"(?:(?i:chapter|book|part|canto|section) +)?(?:\d+|{_ROMAN})\.?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def open_shelf(folder: Path, advance: Callable[[int], None] | None = None) -> Shelf:
    """Every book of `folder`, once. `advance` hears the bytes of each file that was read.

    Raises: DataError, which names the file, for one that is not UTF-8, without markers or title, of another
        title or number than its name or the catalogue says, or with more U+FFFD than `corpora.REPLACED`.
    """
    paths = book_files(folder)
    catalogue = read_catalogue(folder / CATALOGUE) if (folder / CATALOGUE).is_file() else {}
    books = []
    for path in paths:
        book = open_book(path, catalogue)
        books.append(book._replace(file=path.relative_to(folder).as_posix()))
        if advance:
            advance(path.stat().st_size)
    return each_once(books)


def book_files(folder: Path) -> list[Path]:
    """The texts in and below `folder`. Raises: DataError for none."""
    paths = sorted(path for path in text_files(folder) if path.suffix == ".txt")
    if not paths:
        raise DataError(f"{folder} has no .txt file; expected texts of Project Gutenberg, such as pg1342.txt")
    return paths


def open_book(path: Path, catalogue: Mapping[int, str]) -> Book:
    """The book in one file, cleaned, its title and number checked. Raises: as `open_shelf`."""
    raw = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    refuse_replaced(raw, path)
    start, end = _START.search(raw), _END.search(raw)
    if not start or not end or end.start() < start.end():
        absent = "END" if start else "START"
        raise DataError(
            f"{path} has no {absent} marker where it belongs; expected '*** {absent} OF THE PROJECT "
            "GUTENBERG EBOOK ... ***'; download the book whole, as plain text"
        )
    if second := _START.search(raw, start.end()):
        titles = [" ".join(found[1].split()) for found in _TITLE.finditer(raw)][:2] or ["without titles"]
        raise DataError(
            f"{path} holds more than one book ({' and '.join(map(repr, titles))}; a second START marker at "
            f"character {second.start()}); cut it into one file per book"
        )
    id, title = _identity(path, raw[: start.start()], catalogue)
    return Book(str(path), id, title, clean_book(raw[start.end() : end.start()]))


def read_catalogue(path: Path) -> dict[int, str]:
    """Number -> title of a pg_catalog.csv. Raises: DataError for other columns, a number with two titles."""
    rows = csv.DictReader(io.StringIO(read_text(path)))
    if not {"Text#", "Title"} <= set(rows.fieldnames or ()):
        raise DataError(
            f"{path} has the columns {', '.join(rows.fieldnames or ())}; expected Text# and Title"
        )
    titles: dict[int, str] = {}
    for row in rows:
        number, title = row["Text#"] or "", " ".join((row["Title"] or "").split())
        if not number.isdecimal():
            raise DataError(f"{path} line {rows.line_num}: Text# is {number!r}; expected a number")
        first = titles.setdefault(int(number), title)
        if not same_title(first, title):
            raise DataError(f"{path} gives number {number} to {first!r} and to {title!r}; correct one")
    return titles


def same_title(one: str, other: str) -> bool:
    """Whether two titles are of one work: the words of one begin the other, since subtitles come and go."""
    short, long = sorted((_title_words(one), _title_words(other)), key=len)
    return bool(short) and long[: len(short)] == short


def clean_book(text: str) -> str:
    """The body of a book: paragraphs of stripped lines with one blank line between them.

    Without lines that are a page number in brackets, paragraphs that are nothing but a number (arabic or
    roman, "chapter" before it or not), the credits, control characters and runs of spaces.
    """
    text = _CONTROL.sub("", text.replace("\t", " "))
    lines = [" ".join(line.split()) for line in text.split("\n")]
    kept = "\n".join(line for line in lines if not _PAGE_LINE.fullmatch(line))
    paragraphs = [part for part in re.split(r"\n{2,}", kept.strip("\n")) if not _NUMBER_LINE.fullmatch(part)]
    first = 1 if paragraphs and _CREDIT.match(paragraphs[0]) else 0
    last = -1 if paragraphs and _CLOSING.match(paragraphs[-1]) else None
    return "\n\n".join(paragraphs[first:last])


def _identity(path: Path, header: str, catalogue: Mapping[int, str]) -> tuple[int | None, str]:
    """(number, title) of the header. Raises: DataError where the file's name or the catalogue differs."""
    found = _TITLE.search(header)
    if not found:
        raise DataError(f"{path} has no 'Title:' before its START marker, so nothing says what it is")
    title, stated = " ".join(found[1].split()), _NUMBER.search(header)
    named = _NAME.fullmatch(path.stem)
    number, words_of_name = (int(named[1]), named[2]) if named else (None, path.stem)
    if stated and number not in (None, int(stated[1])):
        raise DataError(f"{path} is number {stated[1]} by its header, {title!r}; rename it or get {number}")
    id = int(stated[1]) if stated else number
    listed = "" if id is None else catalogue.get(id, "")
    for claim, source in ((words_of_name, "its name"), (listed, CATALOGUE)):
        if claim and not same_title(claim, title):
            raise DataError(f"{path} is {title!r} by its header and {claim!r} by {source}; correct one")
    return id, title


def _title_words(title: str) -> list[str]:
    found = split_words(title)
    return found[1:] if found[:1] and found[0] in _ARTICLES else found
