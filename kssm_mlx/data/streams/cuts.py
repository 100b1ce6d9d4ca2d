"""Where a text may be cut so that the tokens of its parts are the tokens of the whole.

Byte by byte and character by character that is anywhere. Other tokenizers work on words, or merge what is
next to each other: a cut is made behind a line end between two words, or before a space, and only where
the tokens of what stands around it are the same cut and uncut. Where no such place is found, as with a
tokenizer that begins every text with a space of its own, the document is encoded whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.data.tokenizers.protocol import Tokenizer

PIECE = 1 << 20  # characters encoded at once
AROUND = 1 << 11  # characters on each side of a cut that are looked at
TRIES = 8
# Behind a line end alone between two words, which every pattern of words has on a side of its own.
LINES, SPACES = re.compile(r"(?<=\S\n)(?=\S)"), re.compile(r"(?<=\S)(?= \S)")
Encode = Callable[[str], np.ndarray]


def encode_pieces(
    pieces: Iterable[str], tokenizer: Tokenizer, special_tokens: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """The parts of one document, and their ids: together those of the whole."""
    encode = tokenizer.encode_special if special_tokens else tokenizer.encode
    exact = isinstance(tokenizer, ByteTokenizer | CharTokenizer)
    for text in cut_pieces(pieces, (lambda buffer: PIECE) if exact else (lambda b: find_cut(b, encode))):
        yield text, encode(text)


def cut_pieces(pieces: Iterable[str], find: Callable[[str], int | None]) -> Iterator[str]:
    """The same text in parts of about `PIECE` characters, cut where `find` says; None: not yet."""
    buffer, least = "", PIECE + AROUND
    for piece in pieces:
        buffer += piece
        while len(buffer) >= least:
            cut = find(buffer)
            if cut is None:
                least = 2 * len(buffer)  # every further look costs more
                break
            yield buffer[:cut]
            buffer, least = buffer[cut:], PIECE + AROUND
    if buffer:
        yield buffer


def cut_at_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Parts that end where a line does between two words: a BPE learns of them what it learns of all."""
    return cut_pieces(pieces, lambda buffer: next(_places(buffer, LINES), None))


def find_cut(buffer: str, encode: Encode) -> int | None:
    """A place where the tokens around are the same cut and uncut; None where none was found."""
    for pattern in (LINES, SPACES):
        for _, place in zip(range(TRIES), _places(buffer, pattern)):
            left, right = buffer[place - AROUND : place], buffer[place : place + AROUND]
            if np.array_equal(encode(left + right), np.concatenate([encode(left), encode(right)])):
                return place
    return None


def _places(buffer: str, pattern: re.Pattern[str]) -> Iterator[int]:
    """Places with `AROUND` characters on each side, those nearest the end first."""
    stop = len(buffer) - AROUND
    for end in range(stop, AROUND, -AROUND):
        found = [m.start() for m in pattern.finditer(buffer, max(end - AROUND, AROUND), end)]
        yield from reversed(found)
