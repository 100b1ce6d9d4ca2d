"""Characters behind 32 reserved ids, eight of which are control tokens, each one id.

    <|pad|> 0  <|unk|> 1  <|bos|> 2  <|eos|> 3  <|system|> 4  <|user|> 5  <|assistant|> 6  <|endofturn|> 7

8 to 31 are kept free, so that more tokens do not move the characters; those of the corpus begin at 32, in the
order of their code points. A prompt writes a control token as above; so does a document where the recipe has
`data.special_tokens = true`, and otherwise it is characters there. `<|eos|>` opens every document.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from kssm_mlx.data.tokenizers.protocol import DescribedTokenizer, Documents, code_points, encode_utf8

NAMES = ("pad", "unk", "bos", "eos", "system", "user", "assistant", "endofturn")
CONTROL = tuple(f"<|{name}|>" for name in NAMES)
RESERVED = 32
UNKNOWN, SEPARATOR = CONTROL.index("<|unk|>"), CONTROL.index("<|eos|>")
_SPLIT = re.compile("(" + "|".join(map(re.escape, CONTROL)) + ")")


class ControlCharTokenizer(DescribedTokenizer):
    """A character that is not among `characters`, which rise by code point, is `<|unk|>`."""

    name = "chars-reserved"
    separator_id = SEPARATOR

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = RESERVED + len(characters)
        self._codes = code_points(characters)

    @classmethod
    def from_documents(cls, documents: Documents, *, special_tokens: bool = False) -> ControlCharTokenizer:
        """The characters of `documents`; with special_tokens without those of the control tokens in them."""
        texts = (_SPLIT.sub("", text) if special_tokens else text for text in documents)
        return cls("".join(sorted(set().union(*texts))))

    def encode(self, text: str) -> np.ndarray:
        encode_utf8(text)
        return self._characters(text).astype(np.int32)

    def encode_special(self, text: str) -> np.ndarray:
        encode_utf8(text)
        pieces = _SPLIT.split(text)  # text and control tokens in turn
        ids = [self._control(piece) if i % 2 else self._characters(piece) for i, piece in enumerate(pieces)]
        return np.concatenate(ids).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text; an id that is kept free gives none."""
        return "".join(self._text(int(id)) for id in self._in_range(ids))

    def describe(self) -> dict[str, Any]:
        return {"kind": self.name, "control": list(CONTROL), "characters": self.characters}

    def _control(self, piece: str) -> np.ndarray:
        return np.array([CONTROL.index(piece)])

    def _characters(self, piece: str) -> np.ndarray:
        codes = code_points(piece)
        places = np.searchsorted(self._codes, codes).clip(max=max(0, self._codes.size - 1))
        known = self._codes[places] == codes if self._codes.size else np.zeros(codes.size, bool)
        return np.where(known, RESERVED + places, UNKNOWN)

    def _text(self, id: int) -> str:
        if id < len(CONTROL):
            return CONTROL[id]
        return self.characters[id - RESERVED] if id >= RESERVED else ""
