"""A corpus: documents with a licence, and a digest that names their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Corpus:
    """Text as a list of documents. `digest` is a sha256 over all of them, so it names the content.

    validation: the held-out documents of a corpus that comes split, which are not among `documents`.
    whole: the documents are works, so that the split "auto" cuts none in two however few they are.
    """

    name: str
    source: str
    documents: list[str]
    licence: str
    digest: str
    validation: tuple[str, ...] = ()
    whole: bool = False

    @property
    def scored(self) -> list[str]:
        """What a model is scored on that was trained elsewhere: all of it, or the corpus's own validation."""
        return list(self.validation) or self.documents


class Texts(NamedTuple):
    """What a reader makes of its target; the fields as in `Corpus`."""

    documents: list[str]
    licence: str
    validation: tuple[str, ...] = ()
    whole: bool = False


def corpus_digest(documents: Iterable[str]) -> str:
    """sha256 over the documents in order, each after its length, so that moving a boundary changes it."""
    h = hashlib.sha256()
    for text in documents:
        raw = text.encode()
        h.update(len(raw).to_bytes(8, "little"))
        h.update(raw)
    return h.hexdigest()
