"""Tokenizers that need no file: bytes, the characters of a corpus, and ids that stand for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kssm_mlx.data.tokenizers.protocol import DescribedTokenizer, Documents, code_points, encode_utf8
from kssm_mlx.errors import DataError


class ByteTokenizer(DescribedTokenizer):
    """The 256 bytes of UTF-8. NUL, which text never contains, separates documents."""

    name = "bytes"
    vocab_size = 256
    separator_id = 0

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(encode_utf8(text), dtype=np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return self._in_range(ids).astype(np.uint8).tobytes().decode(errors="replace")

    def describe(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class CharTokenizer(DescribedTokenizer):
    """One token per distinct character of a corpus, in the order of their code points."""

    name = "chars"

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        self.separator_id = 0 if characters.startswith("\0") else None
        self._codes = code_points(characters)

    @classmethod
    def from_documents(cls, documents: Documents) -> CharTokenizer:
        """The characters of `documents`, with NUL as separator if there is more than one."""
        found = set().union(*map(set, documents)) | ({"\0"} if len(documents) > 1 else set())
        return cls("".join(sorted(found)))

    def encode(self, text: str) -> np.ndarray:
        encode_utf8(text)
        codes = code_points(text)
        ids = np.searchsorted(self._codes, codes).clip(max=self.vocab_size - 1)
        unknown = np.flatnonzero(self._codes[ids] != codes)
        if unknown.size:
            raise DataError(
                f"character {text[unknown[0]]!r} at position {unknown[0]} is not among the {self.vocab_size} "
                "characters of the training text; leave it out or train with tokenizer = 'bytes'"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return self._codes[self._in_range(ids)].tobytes().decode("utf-32-le")

    def describe(self) -> dict[str, Any]:
        return {"kind": "chars", "characters": self.characters}


class IdTokenizer(DescribedTokenizer):
    """Tokens that mean nothing but themselves, as in a synthetic task: their text is "17 4 4095 "."""

    name = "ids"
    separator_id = None

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        try:
            return self._in_range([int(word) for word in text.split()]).astype(np.int32)
        except ValueError:
            raise DataError(f"{text[:40]!r} is not a text of ids; expected numbers such as '17 4'") from None

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"{id} " for id in self._in_range(ids))

    def describe(self) -> dict[str, Any]:
        return {"kind": "ids", "vocab_size": self.vocab_size}
