"""Books, each kept once: by number, by content, and where a collection holds it whole.

Longest first, so that a collection is kept and its parts are not. What else two books share, such as a story
in two anthologies, stays in the longer one: no paragraph of `LONG` letters is in two books of a shelf, so no
split by books can leak one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LONG = 48  # letters and digits from which a paragraph is the same text and not a common phrase
CONTAINED = 0.5  # share of a book's long paragraphs that another has, from which it is a part of that one

_WORD = re.compile(r"[^\W_]+")


class Book(NamedTuple):
    """id: its number at Project Gutenberg; None where neither its header nor its file's name has one."""

    file: str
    id: int | None
    title: str
    text: str


class Shelf(NamedTuple):
    """The books that are kept, in the order they came in, and file -> why for those that are not."""

    books: list[Book]
    left_out: dict[str, str]


def each_once(books: Sequence[Book]) -> Shelf:
    """`books` without those that are there already and without the paragraphs that a longer book has."""
    kept: dict[str, Book] = {}
    left_out: dict[str, str] = {}
    seen: dict[int | str | None, str] = {}  # number, and text -> the file that has it
    owners: dict[str, str] = {}  # key of a long paragraph -> the file that has it
    for book in sorted(books, key=lambda book: (-len(book.text), book.file)):
        paragraphs = book.text.split("\n\n")
        keys = [key(part) for part in paragraphs]
        if why := _there_already(book, [k for k in keys if k], seen, owners):
            left_out[book.file] = why
            continue
        new = [part for part, k in zip(paragraphs, keys) if k not in owners]
        kept[book.file] = book._replace(text="\n\n".join(new))
        seen |= {book.id: book.file, book.text: book.file}
        owners.update((k, book.file) for k in keys if k and k not in owners)
    return Shelf([kept[book.file] for book in books if book.file in kept], left_out)


def _there_already(
    book: Book, long: Sequence[str], seen: Mapping[int | str | None, str], owners: Mapping[str, str]
) -> str:
    """Why `book`, whose long paragraphs have the keys `long`, is not taken; the empty string if it is."""
    if not book.text:
        return "it has no text"
    if book.id is not None and book.id in seen:
        return f"{seen[book.id]} has the same number, {book.id}"
    if book.text in seen:
        return f"{seen[book.text]} has the same text"
    there = [owners[k] for k in long if k in owners]
    if long and len(there) >= CONTAINED * len(long):
        most = max(sorted(set(there)), key=there.count)
        return f"{len(there)} of its {len(long)} paragraphs are in {most} or another longer book"
    return ""


def key(paragraph: str) -> str | None:
    """The same for two printings of a long paragraph; None for a short one."""
    letters = "".join(split_words(paragraph))
    return hashlib.sha256(letters.encode()).hexdigest() if len(letters) >= LONG else None


def split_words(text: str) -> list[str]:
    """Words without case, accents and punctuation."""
    plain = text.casefold()
    if not plain.isascii():
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    return _WORD.findall(plain)
