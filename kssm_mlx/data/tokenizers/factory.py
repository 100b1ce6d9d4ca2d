"""Text to token ids and back, behind one protocol: bytes, characters, Hugging Face's tokenizers, ids."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kssm_mlx import files
from kssm_mlx.errors import ConfigError, DataError, nearest

FILE = "tokenizer.json"
FORMAT = "kssm-tokenizer/1"
NAMED = ("gpt2", "cl100k", "neox")  # tokenizers that models were published with: data/tokenizers/published.py
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "[SEP]", "<|im_end|>")


class Tokenizer(Protocol):
    """What the rest of the package knows about a tokenizer.

    `separator_id` is the token that opens every document (None: there is none); `digest` is the sha256 of
    the canonical description, equal exactly when two tokenizers give the same ids.
    """

    name: str
    vocab_size: int
    separator_id: int | None
    digest: str

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def describe(self) -> dict[str, Any]: ...

    def save(self, folder: str | Path) -> None: ...


class _Described(ABC):
    """Digest and file of a tokenizer, both from its canonical description."""

    name: str
    vocab_size: int

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the ids depend on, as plain values."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(_canonical(self.describe())).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` (ours, with the digest inside) into `folder`."""
        table = {"format": FORMAT, "name": self.name, "digest": self.digest, "tokenizer": self.describe()}
        files.replace(Path(folder) / FILE, json.dumps(table, ensure_ascii=False, indent=1) + "\n")

    def _in_range(self, ids: Sequence[int]) -> np.ndarray:
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            bad = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise DataError(
                f"token id {bad} is not in the vocabulary 0..{self.vocab_size - 1} of {self.name}"
            )
        return ids


class ByteTokenizer(_Described):
    """The 256 bytes of UTF-8. NUL, which text never contains, separates documents."""

    name = "bytes"
    vocab_size = 256
    separator_id = 0

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return self._in_range(ids).astype(np.uint8).tobytes().decode(errors="replace")

    def describe(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class CharTokenizer(_Described):
    """One token per distinct character of a corpus, in the order of their code points."""

    name = "chars"

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        self.separator_id = 0 if characters.startswith("\0") else None
        self._codes = _code_points(characters)

    @classmethod
    def from_documents(cls, documents: Sequence[str]) -> CharTokenizer:
        """The characters of `documents`, with NUL as separator if there is more than one."""
        found = set().union(*map(set, documents)) | ({"\0"} if len(documents) > 1 else set())
        return cls("".join(sorted(found)))

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        codes = _code_points(text)
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


class IdTokenizer(_Described):
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


class HFTokenizer(_Described):
    """A `tokenizer.json` of the Hugging Face `tokenizers` library, which is kept whole in our own file."""

    def __init__(self, content: str, name: str):
        from tokenizers import Tokenizer as Backend

        try:
            self.backend = Backend.from_str(content)
        except Exception as e:  # the library raises bare Exception for any unusable file
            raise DataError(f"{name} is not a Hugging Face tokenizer.json: {e}") from None
        self.backend.no_truncation()  # saved settings would silently cut documents at, say, 512 tokens
        self.backend.no_padding()
        self.name = name
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        self.separator_id = next((vocabulary[t] for t in END_OF_TEXT if t in vocabulary), None)

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(self._in_range(ids).tolist(), skip_special_tokens=False)

    def describe(self) -> dict[str, Any]:
        return {"kind": "hf", "content": json.loads(self.backend.to_str())}


class StreamDecoder:
    """Text of a growing sequence of tokens, in pieces that join to `decode` of all of them.

    A character cut between tokens decodes to U+FFFD until its last byte arrives, so trailing ones wait.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._decode: Callable[[Sequence[int]], str] = tokenizer.decode
        self._ids: list[int] = []
        self._shown = 0

    def push(self, id: int) -> str:
        """The text that `id` completes; empty while a character is still incomplete."""
        self._ids.append(int(id))
        text = self._decode(self._ids)
        waiting = min(len(text) - len(text.rstrip("\ufffd")), 4)  # no character has more than four bytes
        new = text[self._shown : len(text) - waiting]
        self._shown += len(new)
        if not waiting:  # at a boundary only the last token matters: some decoders drop a leading space
            self._ids = self._ids[-1:]
            self._shown = len(self._decode(self._ids))
        return new

    def finish(self) -> str:
        """What was still waiting, with U+FFFD for the incomplete character."""
        rest = self._decode(self._ids)[self._shown :] if self._ids else ""
        self._ids, self._shown = [], 0
        return rest


def make_tokenizer(
    spec: str, documents: Sequence[str] | None = None, train: Sequence[str] | None = None
) -> Tokenizer:
    """The tokenizer of a word or of a file.

    bytes                           the 256 bytes
    chars, chars-reserved           the characters of `documents`, alone or behind 32 reserved ids
    bpe:16384                       as many tokens as that, learned from `train`, the side that is trained on
    hf:PATH|REPO, world:PATH        a tokenizer.json, RWKV's vocabulary
    gpt2:, cl100k:, neox:PATH       a file that must have the number of tokens of that name

    Raises: ConfigError for another word or a corpus that is missing, DataError for a file that cannot be
        had or is another tokenizer.
    """
    kind, _, target = spec.partition(":")
    if spec == "bytes":
        return ByteTokenizer()
    if spec in ("chars", "chars-reserved", f"bpe:{target}") and not documents:
        raise ConfigError(f"tokenizer {spec!r} is built from a corpus; give documents, or use 'bytes'")
    if spec == "chars":
        return CharTokenizer.from_documents(documents)
    if spec == "chars-reserved":
        return _control_chars().from_documents(documents)
    if kind == "bpe" and target.isdecimal():
        from kssm_mlx.data.tokenizers.bpe import train_bpe

        return train_bpe(documents if train is None else train, int(target))
    if kind == "hf" and target:
        return _huggingface(_hf_content(target), spec)
    if kind == "world" and target:
        return _world().from_file(target, spec)
    if kind in NAMED and target:
        from kssm_mlx.data.tokenizers.published import published

        return published(kind, target)
    raise ConfigError(
        f"data.tokenizer is {spec!r}; expected bytes, chars, chars-reserved, bpe:SIZE, hf:PATH|REPO, "
        f"world:PATH, {', '.join(f'{name}:PATH' for name in NAMED)}"
        f"{nearest(spec, ('bytes', 'chars', 'chars-reserved'))}"
    )


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer saved or exported into `folder` by us, or a plain Hugging Face `tokenizer.json`.

    Raises: DataError for a missing or broken file, or one whose digest is not that of its content.
    """
    path = Path(folder) / FILE
    content = _read(path)
    try:
        table = json.loads(content)
    except ValueError as e:
        raise DataError(f"{path} is not JSON: {e}") from None
    if isinstance(table, dict) and "model" in table:
        return _huggingface(content, f"hf:{folder}")
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise DataError(f"{path} is no tokenizer of ours ({FORMAT}) and no Hugging Face tokenizer.json")
    try:
        tokenizer, digest = _from_description(table["tokenizer"], table["name"]), table["digest"]
    except (KeyError, TypeError) as e:
        raise DataError(f"{path} is incomplete ({e}); restore it or prepare the data again") from None
    if tokenizer.digest != digest:
        raise DataError(
            f"{path} was changed: its content has digest {tokenizer.digest[:12]}, the file says "
            f"{digest[:12]}; restore it or prepare the data again"
        )
    return tokenizer


def _from_description(described: dict[str, Any], name: str) -> Tokenizer:
    if described["kind"] == "hf":
        return HFTokenizer(json.dumps(described["content"]), name)
    if described["kind"] == "rwkv-world":
        return _world().from_description(described, name)
    if described["kind"] == "ids":
        return IdTokenizer(described["vocab_size"])
    if described["kind"] == "chars-reserved":
        return _control_chars()(described["characters"])
    return ByteTokenizer() if described["kind"] == "bytes" else CharTokenizer(described["characters"])


def _control_chars():
    from kssm_mlx.data.tokenizers.control_chars import ControlCharTokenizer  # which stands on this module

    return ControlCharTokenizer


def _world():
    from kssm_mlx.data.tokenizers.rwkv_world import WorldTokenizer  # which stands on this module

    return WorldTokenizer


def _huggingface(content: str, name: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json: bytes or characters where it is an export of ours."""
    from kssm_mlx.data.tokenizers.huggingface import ours

    tokenizer = HFTokenizer(content, name)
    return ours(json.loads(content)) or tokenizer


def _hf_content(target: str) -> str:
    """tokenizer.json from a file, a folder or, if there is no such path, a repository on the hub."""
    path = Path(target).expanduser()
    if path.is_dir():
        return _read(path / FILE)
    if path.exists() or target.startswith((".", "/", "~")) or target.endswith(".json"):
        return _read(path)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its report of each new attempt says nothing that the one line below lacks
    try:
        return _read(Path(hf_hub_download(target, FILE)))
    except (OSError, ValueError) as e:  # the library's errors are of these kinds
        reason = str(e).strip().split("\n")[0]
        raise DataError(f"no tokenizer {target!r}: not a path, and the hub says: {reason}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise DataError(f"cannot read the tokenizer {path}: {reason.lower()}") from None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"the text has half a surrogate pair at position {e.start}; expected text that UTF-8 can write"
        ) from None


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _canonical(table: dict[str, Any]) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
