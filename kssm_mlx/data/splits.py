"""Held-out text: whole documents, the tail of the one stream, or what a corpus itself holds out. The two
sides never share a character.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from kssm_mlx.data.corpora.corpus import Corpus
from kssm_mlx.errors import ConfigError, DataError

MANY = 20  # documents from which "auto" holds out whole ones


def resolve_method(method: str, documents: int, whole: bool = False) -> str:
    """What "auto" means for this many documents, never cut if `whole`; other methods are themselves."""
    if method != "auto":
        return method
    return "documents" if whole or documents >= MANY else "contiguous"


def split_corpus(
    corpus: Corpus, method: str, share: float, seed: int
) -> tuple[tuple[list[str], list[str]], str, float]:
    """((training, validation), method, share of validation that the recipe asks for or the corpus has).

    Raises: ConfigError for a corpus that comes split and a method other than "auto", DataError if one side
        would be empty.
    """
    if not corpus.validation:
        method = resolve_method(method, len(corpus.documents), corpus.whole)
        return split_documents(corpus.documents, method, share, seed), method, share
    refuse_other_split(corpus.source, method)
    train, validation = corpus.documents, list(corpus.validation)
    held_out, rest = (sum(map(len, side)) for side in (validation, train))
    return (train, validation), "official", held_out / (held_out + rest)


def refuse_other_split(source: str, method: str) -> None:
    """Raises: ConfigError for a split that is asked for where the corpus brings its own."""
    if method != "auto":
        raise ConfigError(
            f"data.split is {method!r}, but {source} comes with its own validation text; leave split "
            "out, or name the training file alone"
        )


def split_documents(
    documents: Sequence[str], method: str, share: float, seed: int
) -> tuple[list[str], list[str]]:
    """(training documents, validation documents) by a resolved method; `share` counts characters.

    Raises: DataError if one side would be empty.
    """
    if method == "documents":
        train, validation = split_by_document(documents, share, seed)
    else:
        train, validation = split_contiguous(documents, share)
    if not train or not validation:
        raise explain_empty_side(len(documents), sum(map(len, documents)), method, share)
    return train, validation


def explain_empty_side(documents: int, characters: int, method: str, share: float) -> DataError:
    """Of so much text, split like this, nothing is left for one side."""
    return DataError(
        f"{documents} document(s) with {characters} characters leave one side of the "
        f"split {method!r} empty at validation = {share}; give more text"
        + (", or use split = 'contiguous'" if method != "contiguous" else "")
    )


def split_by_document(documents: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Hold out documents in a seeded order, as many as fit into `share` of the characters, at least one.

    Equal documents go to the same side.
    """
    held = hold_out(documents, len, share, seed)
    return [d for d in documents if d not in held], [d for d in documents if d in held]


def hold_out(documents: Sequence[str], size: Callable[[str], int], share: float, seed: int) -> set[str]:
    """Which documents, or keys that are equal for equal documents, are held out. size: characters of one."""
    count = Counter(documents)
    unique = list(count)
    room = share * sum(map(size, documents))
    held = set()
    for i in np.random.Generator(np.random.PCG64(seed)).permutation(len(unique)):
        together = size(unique[i]) * count[unique[i]]
        if together <= room:
            held.add(unique[i])
            room -= together
    return held or {min(unique, key=lambda text: size(text) * count[text])}


def split_contiguous(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Hold out the last `share` of the characters; the document at the cut gives its head and its tail."""
    left = int((1 - share) * sum(map(len, documents)))
    train, validation = [], []
    for text in documents:
        train.append(text[:left])
        validation.append(text[left:])
        left = max(0, left - len(text))
    return [d for d in train if d], [d for d in validation if d]
