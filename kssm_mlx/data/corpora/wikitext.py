"""WikiText in its raw form: a heading ` = Title = ` opens an article, and an article is a document.

Blank lines go, section headings stay. The tokens `@-@`, `@,@` and `@.@` stand for signs inside words and
numbers; the text keeps them, as published losses do, unless it is asked for joined. A folder gives the
official split, and no article of its training side is one of its validation side.

Source: Merity et al. 2016, arXiv:1609.07843.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kssm_mlx.data.corpora.text_files import read_text, refuse_replaced
from kssm_mlx.errors import DataError

LICENCE = "CC-BY-SA-3.0"
FILES = ("wiki.train.raw", "wiki.valid.raw")
UNKNOWN = 1e-3  # most <unk> per word: the raw text has next to none, the tokenised one 0.4 to 2.6 %
_HEADING = re.compile(r"= (?!=)(.+)(?<!=) =")
_MARKER = re.compile(r" @([-,.])@ ")


class Article(NamedTuple):
    title: str
    text: str


def read_splits(path: Path, joined: bool = False) -> tuple[list[Article], list[Article]]:
    """(training, official validation) articles of a folder; of a file (its articles, none).

    Raises: as `read_articles`, and DataError for a folder without one of the two files.
    """
    if not path.is_dir():
        return read_articles(path, joined), []
    absent = [name for name in FILES if not (path / name).is_file()]
    if absent:
        raise DataError(
            f"{path} has no {' and no '.join(absent)}; a folder gives the official split, so it needs "
            f"{' and '.join(FILES)}; name a file to split it by articles"
        )
    train, validation = (read_articles(path / name, joined) for name in FILES)
    held_out = {article.text for article in validation}
    return [article for article in train if article.text not in held_out], validation


def read_articles(
    path: Path, joined: bool = False, advance: Callable[[int], None] | None = None
) -> list[Article]:
    """The articles of a raw file in order, each once. `advance` hears how many lines were read.

    joined: write `@-@`, `@,@` and `@.@` as the signs they stand for.
    Raises: DataError for a file that is no UTF-8, has no heading, has `<unk>` (the tokenised form of the
        text) or more U+FFFD than `corpora.REPLACED`.
    """
    text = read_text(path)
    refuse_replaced(text, path)
    unknown = text.count("<unk>")
    if unknown > UNKNOWN * text.count(" "):
        raise DataError(f"{path} has {unknown} <unk>: this is the tokenised WikiText; take the raw one")
    lines = text.split("\n")
    found = {article.text: article for article in _cut_articles(lines, advance or (lambda lines: None))}
    if not found:
        raise DataError(f"{path} has no article: expected headings such as ' = Robert Boulter = '")
    if joined:
        return [Article(title, _MARKER.sub(r"\1", text)) for title, text in found.values()]
    return list(found.values())


def _cut_articles(lines: list[str], advance: Callable[[int], None]) -> Iterator[Article]:
    """Articles from lines. A heading stands between blank lines; what comes before the first is dropped."""
    starts = [
        i for i, line in enumerate(lines) if _HEADING.fullmatch(line.strip()) and _stands_alone(lines, i)
    ]
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        body = [line for line in map(str.strip, lines[start:end]) if line]
        advance(end - start)
        if len(body) > 1:
            heading = _HEADING.fullmatch(body[0])
            yield Article(heading[1] if heading else body[0], "\n".join(body))


def _stands_alone(lines: list[str], i: int) -> bool:
    return not "".join(lines[max(0, i - 1) : i] + lines[i + 1 : i + 2]).strip()
