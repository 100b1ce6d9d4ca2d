"""The tokenizer of RWKV World models: greedy longest match over a vocabulary of byte strings.

The vocabulary is a text file, `rwkv_vocab_v20230424.txt` as published: per line an id, a Python literal (a
string or bytes) and its length in bytes, such as `257 '\\t\\t' 2`.

Source: Peng et al. 2024, arXiv:2404.05892, appendix on the World tokenizer.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kssm_mlx.data.tokenizers.protocol import (
    MOST_IDS,
    DescribedTokenizer,
    encode_utf8,
    read_tokenizer_file,
)
from kssm_mlx.errors import DataError

VOCABULARY = "rwkv_vocab_v20230424.txt"
LONGEST_LINE = 2000  # characters; the published vocabulary has tokens of up to 128 bytes


class WorldTokenizer(DescribedTokenizer):
    """At every place the longest token that matches. Id 0, which is no text, separates documents."""

    separator_id = 0

    def __init__(self, tokens: Mapping[int, bytes], name: str):
        """tokens: id -> bytes; every single byte must be among them, so that any text can be written."""
        self.name, self._tokens = name, dict(sorted(tokens.items()))
        self._ids = {token: id for id, token in self._tokens.items()}
        _refuse_vocabulary(self._tokens, self._ids, name)
        self.vocab_size = max(self._tokens) + 1
        self._lengths = _index_lengths(self._ids)

    @classmethod
    def from_file(cls, path: str | Path, name: str | None = None) -> WorldTokenizer:
        """The vocabulary in `path`, or in the file of the published name in that folder.

        Raises: DataError for a file that cannot be read, a line that is not of the format, a token that
            appears twice and a vocabulary without all 256 bytes.
        """
        path = Path(path).expanduser()
        path = path / VOCABULARY if path.is_dir() else path
        tokens: dict[int, bytes] = {}
        for number, line in enumerate(read_tokenizer_file(path).split("\n"), 1):
            if line.strip():
                id, token = _parse_entry(line, f"{path}, line {number}")
                if id in tokens:
                    raise DataError(f"{path}, line {number}: id {id} was there before")
                tokens[id] = token
        return cls(tokens, name or f"world:{path}")

    def encode(self, text: str) -> np.ndarray:
        data, ids, at = encode_utf8(text), [], 0
        while at < len(data):
            for length in self._lengths.get(data[at : at + 2], (1,)):
                id = self._ids.get(data[at : at + length])
                if id is not None:
                    break
            ids.append(id)  # the last length is 1, and every single byte is a token
            at += length
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text; ids that are no token (the separator, gaps in the vocabulary) give none."""
        return b"".join(self._tokens.get(int(i), b"") for i in self._in_range(ids)).decode(errors="replace")

    def describe(self) -> dict[str, Any]:
        tokens = [[id, token.decode("latin-1")] for id, token in self._tokens.items()]
        return {"kind": "rwkv-world", "tokens": tokens}

    @classmethod
    def from_description(cls, described: Mapping[str, Any], name: str) -> WorldTokenizer:
        tokens = {id: token.encode("latin-1") for id, token in described["tokens"]}
        if not all(type(id) is int and 0 < id < MOST_IDS for id in tokens):
            raise ValueError("an id is no number of a token")
        return cls(tokens, name)


def _index_lengths(ids: Mapping[bytes, int]) -> dict[bytes, tuple[int, ...]]:
    """First two bytes -> the lengths of tokens that begin with them, longest first; 1 is always the last."""
    found: dict[bytes, set[int]] = {}
    for token in ids:
        found.setdefault(token[:2], {1}).add(len(token))
    return {start: tuple(sorted(lengths, reverse=True)) for start, lengths in found.items()}


def _parse_entry(line: str, where: str) -> tuple[int, bytes]:
    """(id, bytes) of a line, whose stated length is checked."""
    try:
        if len(line) > LONGEST_LINE:
            raise ValueError("longer than any entry")
        id, rest = line.split(" ", 1)
        literal, length = rest.rsplit(" ", 1)
        token = ast.literal_eval(literal)
        token = token.encode() if isinstance(token, str) else token
        id, length = int(id), int(length)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise DataError(
            f"{where}: expected an id, a Python literal and a length, got {line[:60]!a}"
        ) from None
    if not isinstance(token, bytes) or len(token) != length or not 1 <= id < MOST_IDS:
        raise DataError(
            f"{where}: expected {length} bytes under an id from 1 on, below {MOST_IDS:,}, got {line[:60]!a}"
        )
    return id, token


def _refuse_vocabulary(tokens: Mapping[int, bytes], ids: Mapping[bytes, int], name: str) -> None:
    if len(ids) < len(tokens):
        twice = next(token for id, token in tokens.items() if ids[token] != id)
        raise DataError(f"{name}: the token {twice!r} has two ids; a vocabulary gives each token one")
    absent = [b for b in range(256) if bytes([b]) not in ids]
    if absent:
        raise DataError(
            f"{name} lacks {len(absent)} single bytes, the first is {absent[0]}; text with them could not be "
            "written, so this is not a whole World vocabulary"
        )
