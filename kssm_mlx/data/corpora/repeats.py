"""Passages that occur in more than one document, taken out so that no split can leak them."""

from __future__ import annotations

from collections.abc import Iterable

REPEAT = 64  # bytes; the length of passage that check C15 counts as shared between training and validation


def remove_repeats(documents: list[str], length: int = REPEAT) -> list[str]:
    """Documents without the paragraphs that share `length` bytes with an earlier document.

    No run of `length` bytes is then in two documents, so no split by document can leak one.
    """
    seen: set[bytes] = set()
    return [_new_paragraphs(text, seen, length) for text in documents]


def remove_repeated_paragraphs(documents: Iterable[str], length: int = REPEAT) -> list[str]:
    """Documents without the paragraphs that share `length` bytes with an earlier one, of this document or of
    another. A document of which nothing is left is empty.
    """
    seen: set[bytes] = set()
    return [
        "\n\n".join(kept for part in text.split("\n\n") if (kept := _new_paragraphs(part, seen, length)))
        for text in documents
    ]


def _new_paragraphs(text: str, seen: set[bytes], length: int) -> str:
    """The paragraphs of `text` with nothing in `seen`, to which their own passages are then added."""
    body, gap, own = b"", b"", set()
    for paragraph in text.encode().split(b"\n\n"):
        joined = body[-(length - 1) :] + gap + paragraph  # with the passages that cross the gap
        passages = {joined[i : i + length] for i in range(len(joined) - length + 1)}
        if passages.isdisjoint(seen):
            body += gap + paragraph
            gap = b"\n\n"
            own |= passages
    seen |= own
    return body.decode()
