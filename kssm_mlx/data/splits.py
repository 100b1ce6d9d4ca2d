"""Held-out text: whole documents, or the tail of the one stream. The two sides never share a character."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from kssm_mlx.errors import DataError

MANY = 20  # documents from which "auto" holds out whole ones


def resolve(method: str, documents: int) -> str:
    """What "auto" means for this many documents; other methods are themselves."""
    if method != "auto":
        return method
    return "documents" if documents >= MANY else "contiguous"


def split_documents(
    documents: Sequence[str], method: str, share: float, seed: int
) -> tuple[list[str], list[str]]:
    """(training documents, validation documents) by a resolved method; `share` counts characters.

    Raises: DataError if one side would be empty.
    """
    if method == "documents":
        train, validation = by_document(documents, share, seed)
    else:
        train, validation = contiguous(documents, share)
    if not train or not validation:
        raise DataError(
            f"{len(documents)} document(s) with {sum(map(len, documents))} characters leave one side of the "
            f"split {method!r} empty at validation = {share}; give more text, or use split = 'contiguous'"
        )
    return train, validation


def by_document(documents: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Hold out documents in a seeded order, as many as fit into `share` of the characters, at least one.

    Equal documents go to the same side.
    """
    count = Counter(documents)
    unique = list(count)
    room = share * sum(map(len, documents))
    held = set()
    for i in np.random.Generator(np.random.PCG64(seed)).permutation(len(unique)):
        size = len(unique[i]) * count[unique[i]]
        if size <= room:
            held.add(unique[i])
            room -= size
    held = held or {min(unique, key=lambda text: len(text) * count[text])}
    return [d for d in documents if d not in held], [d for d in documents if d in held]


def contiguous(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Hold out the last `share` of the characters; the document at the cut gives its head and its tail."""
    left = int((1 - share) * sum(map(len, documents)))
    train, validation = [], []
    for text in documents:
        train.append(text[:left])
        validation.append(text[left:])
        left = max(0, left - len(text))
    return [d for d in train if d], [d for d in validation if d]
