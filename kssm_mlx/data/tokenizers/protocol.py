"""What a tokenizer is: text to ids and back, with a digest that says when two give the same ids."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kssm_mlx import files
from kssm_mlx.errors import DataError

FILE = "tokenizer.json"
FORMAT = "kssm-tokenizer/1"
MOST_IDS = 1 << 24  # far more than any vocabulary has; logits of 2^31 columns fit nowhere


class Documents(Protocol):
    """Texts to build a tokenizer from: a list, or parts of documents that are read as they are asked for."""

    def __len__(self) -> int:
        """How many documents there are."""
        ...

    def __iter__(self) -> Iterator[str]: ...


class Tokenizer(Protocol):
    """What the rest of the package knows about a tokenizer.

    `separator_id` is the token that opens every document (None: there is none); `digest` is the sha256 of
    the canonical description, equal exactly when two tokenizers give the same ids. `stop_ids` end a
    generation: the separator, or what the files of a model name.
    """

    name: str
    vocab_size: int

    @property
    def separator_id(self) -> int | None: ...

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    @property
    def digest(self) -> str: ...

    def encode(self, text: str) -> np.ndarray:
        """A document's text, in which a special token is its characters."""
        ...

    def encode_special(self, text: str) -> np.ndarray:
        """A text in which a special token, such as `<|endoftext|>`, stands for itself."""
        ...

    def encode_prompt(self, text: str) -> np.ndarray:
        """A prompt: `encode_special`, with the tokens that the tokenizer itself puts around a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def describe(self) -> dict[str, Any]: ...

    def save(self, folder: str | Path) -> None: ...


class DescribedTokenizer(ABC):
    """Digest and file of a tokenizer, both from its canonical description."""

    name: str
    vocab_size: int
    separator_id: int | None
    byte_ids: frozenset[int] = frozenset()  # tokens of one byte, of which only a whole run is decoded
    _stop_ids: tuple[int, ...] | None = None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        own = () if self.separator_id is None else (self.separator_id,)
        return own if self._stop_ids is None else self._stop_ids

    @stop_ids.setter
    def stop_ids(self, ids: tuple[int, ...]) -> None:
        self._stop_ids = ids

    def id_of(self, token: str) -> int | None:
        """The id of a special token by its text; None where there is none."""
        return None

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """See `Tokenizer`."""

    def encode_special(self, text: str) -> np.ndarray:
        """See `Tokenizer`; the same as `encode` where there are no special tokens."""
        return self.encode(text)

    def encode_prompt(self, text: str) -> np.ndarray:
        """See `Tokenizer`; the same as `encode_special` where nothing is put around a text."""
        return self.encode_special(text)

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the ids depend on, as plain values."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json(self.describe())).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` (ours, with the digest inside) into `folder`."""
        table = {"format": FORMAT, "name": self.name, "digest": self.digest, "tokenizer": self.describe()}
        files.replace(Path(folder) / FILE, json.dumps(table, ensure_ascii=False, indent=1) + "\n")

    def _in_range(self, ids: Sequence[int]) -> np.ndarray:
        flat = np.asarray(ids, dtype=np.int64).reshape(-1)
        if flat.size and not (flat.min() >= 0 and flat.max() < self.vocab_size):
            bad = flat[(flat < 0) | (flat >= self.vocab_size)][0]
            raise DataError(
                f"token id {bad} is not in the vocabulary 0..{self.vocab_size - 1} of {self.name}"
            )
        return flat


def read_tokenizer_file(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise DataError(f"cannot read the tokenizer {path}: {reason.lower()}") from None


def encode_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        byte = ord(text[e.start]) - 0xDC00
        # How Python keeps a byte of an argument or a typed line that is no character.
        if 0x80 <= byte <= 0xFF:
            raise DataError(f"the text is not UTF-8: character {e.start} is the byte 0x{byte:02x}") from None
        raise DataError(
            f"the text has half a surrogate pair at position {e.start}; expected text that UTF-8 can write"
        ) from None


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def canonical_json(table: dict[str, Any]) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
