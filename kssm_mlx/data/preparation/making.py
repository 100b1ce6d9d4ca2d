"""What token files are made of: the sections of their index, and sides that are written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kssm_mlx import files
from kssm_mlx.data.index import MIXED
from kssm_mlx.data.mixtures import name_sources
from kssm_mlx.data.shards import write_numbers
from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.data.tokens import SCORED, STARTS, TokenSplit, check_ids


class Written(NamedTuple):
    """sides: sizes of each by its name. trained: of a mixture, the training tokens of each source."""

    sides: dict[str, dict[str, float]]
    trained: tuple[int, ...] = ()


class Source(NamedTuple):
    """origin: the sections of the index that say what the ids depend on: equal sections, equal ids.
    write: (folder, type of the ids) -> what was written there.
    """

    origin: dict[str, Any]
    tokenizer: Tokenizer
    write: Callable[[Path, np.dtype], Written]


class Side(NamedTuple):
    """One side as it is written. lost: measures what share of its characters decoding does not give back."""

    split: TokenSplit
    utf8_bytes: int
    lost: Callable[[], float]


class Described(NamedTuple):
    """One text: as in `Corpus`; documents: how many; method, share: how it was split."""

    name: str
    source: str
    licence: str
    digest: str
    documents: int
    method: str
    share: float


def describe_texts(recipe: Any, texts: Sequence[Described], tokenizer: Tokenizer) -> dict[str, Any]:
    """The sections of one text, or of several as the one that their mixture is."""
    names, first = name_sources([text.name for text in texts]), texts[0]
    origin = {
        "corpus": {
            "name": " + ".join(names),
            "source": first.source,
            "licence": "; ".join(dict.fromkeys(text.licence for text in texts)),
            "digest": first.digest,
            "documents": sum(text.documents for text in texts),
        },
        "tokenizer": describe_tokenizer(tokenizer),
        "split": {
            "method": ", ".join(dict.fromkeys(text.method for text in texts)),
            "validation": first.share,
            "seed": recipe.seed,
        },
        "special_tokens": allows_special_tokens(recipe),
    }
    if sources := mixed_sources(recipe):
        digests = json.dumps([text.digest for text in texts])
        origin["corpus"] |= {
            "source": recipe.origin,
            "digest": hashlib.sha256(digests.encode()).hexdigest(),
        }
        origin["split"]["validation"] = recipe.validation
        origin["mixture"] = [
            {"name": name, "source": each.source, "weight": each.weight, "epochs": each.epochs}
            for name, each in zip(names, sources, strict=True)
        ]
    return origin


def mixed_sources(recipe: Any) -> Sequence[Any]:
    """The sources of a mixture; none of one text."""
    return getattr(recipe, "sources", ())


def allows_special_tokens(recipe: Any) -> bool:
    return bool(getattr(recipe, "special_tokens", False))


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "name": tokenizer.name,
        "digest": tokenizer.digest,
        "separator_id": tokenizer.separator_id,
    }


def characters_lost(text: str, decoded: str) -> int:
    """How many characters of `text` are not in `decoded`, spaces at its ends aside: decoders drop some."""
    text, decoded = text.strip(), decoded.strip()
    return 0 if text == decoded else max(1, (Counter(text) - Counter(decoded)).total())


def write_side(folder: Path, side: Side, vocab_size: int, dtype: np.dtype) -> dict[str, float]:
    """Write the files of one side; returns its sizes, and what its tokenizer lost.

    Raises: DataError for ids outside the vocabulary, or none.
    """
    split = side.split
    check_ids(split.ids, vocab_size, folder / f"{split.name}.bin")
    streams: dict[str, np.ndarray] = {f"{split.name}.docs.bin": split.starts.astype(STARTS)}
    if split.scored is not None:
        streams[f"{split.name}.scored.bin"] = split.scored.astype(SCORED)
    if split.labels is not None:
        check_ids(split.labels, vocab_size, folder / f"{split.name}.labels.bin")
        streams[f"{split.name}.labels.bin"] = split.labels.astype(dtype)
    if split.owners is not None:
        streams[MIXED] = split.owners
    write_numbers(folder, f"{split.name}.bin", np.asarray(split.ids), dtype)
    for name, array in streams.items():
        files.replace(folder / name, array.tobytes())
    return {
        "tokens": split.ids.size,
        "documents": split.starts.size,
        "utf8_bytes": side.utf8_bytes,
        "lost": side.lost(),
    }
