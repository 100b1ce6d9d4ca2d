"""A corpus in numbers: sizes under a tokenizer, what is there twice, what was decoded wrongly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kssm_mlx.data.corpora.books import key
from kssm_mlx.data.tokenizers.protocol import Tokenizer


@dataclass(frozen=True)
class Description:
    """Tokens leave separators out; `longest` is that of a document. duplicates: documents equal to an earlier
    one. repeated: the share of long paragraphs that an earlier document has, whatever their case and
    punctuation. replaced: the share of U+FFFD among the characters.
    """

    documents: int
    characters: int
    bytes: int
    tokens: int
    longest: int
    duplicates: int
    repeated: float
    replaced: float


def describe_corpus(documents: Iterable[str], tokenizer: Tokenizer) -> Description:
    """The numbers of at least one document, each read once."""
    read, tokens, paragraphs = [], [], _Paragraphs()
    for text in documents:
        read.append(text)
        tokens.append(tokenizer.encode(text).size)
        paragraphs.add(text)
    characters = sum(map(len, read))
    return Description(
        documents=len(read),
        characters=characters,
        bytes=sum(len(text.encode()) for text in read),
        tokens=sum(tokens),
        longest=max(tokens),
        duplicates=len(read) - len(set(read)),
        repeated=paragraphs.again / max(1, paragraphs.all),
        replaced=sum(text.count("\ufffd") for text in read) / characters,
    )


class _Paragraphs:
    """Counts long paragraphs, and those among them that a document before had."""

    def __init__(self):
        self.all = self.again = 0
        self._seen: set[str] = set()

    def add(self, text: str) -> None:
        own = [k for k in map(key, text.split("\n\n")) if k]
        self.all += len(own)
        self.again += sum(k in self._seen for k in own)
        self._seen.update(own)
