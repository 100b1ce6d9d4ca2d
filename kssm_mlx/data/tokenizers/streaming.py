"""Text of tokens that arrive one at a time, in pieces that join to the decoding of all of them."""

from __future__ import annotations

from typing import NamedTuple

from kssm_mlx.data.tokenizers.protocol import Tokenizer


class Tail(NamedTuple):
    """Where a decoder stands: the latest ids, and how many characters of their text have been given out."""

    ids: tuple[int, ...] = ()
    shown: int = 0


class StreamDecoder:
    """Text of a growing sequence of tokens, in pieces that join to `decode` of all of them.

    What may still change waits: a character that is cut between tokens decodes to U+FFFD until its last byte
    arrives, and a run of tokens of one byte each (ByteFallback) to as many U+FFFD unless all of it is UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, tail: Tail = Tail()):  # noqa: B008  a tuple
        self._tokenizer = tokenizer
        self._ids, self._shown = list(tail.ids), tail.shown
        self._before = 0  # ids that only tell the decoder what came before

    @classmethod
    def after(cls, tokenizer: Tokenizer, ids) -> StreamDecoder:
        """A decoder that goes on behind `ids`, whose text is known; many drop the space of a first word."""
        ids = tuple(int(id) for id in ids)
        decoder = cls(tokenizer, Tail(ids, len(tokenizer.decode(ids)) if ids else 0))
        decoder._before = len(ids)
        return decoder

    @property
    def tail(self) -> Tail:
        """What another decoder needs to go on as this one would."""
        return Tail(tuple(self._ids), self._shown)

    def push(self, id: int) -> str:
        """The text that `id` completes; empty while a character is still incomplete."""
        self._ids.append(int(id))
        if id in getattr(self._tokenizer, "byte_ids", ()):
            return ""
        text = self._tokenizer.decode(self._ids)
        # UTF-8 that breaks off is one U+FFFD, however many bytes of the character are there.
        whole = len(text) - text.endswith("\ufffd")
        new = text[self._shown : whole]
        self._shown = max(self._shown, whole)
        if whole == len(text):
            self._forget()
        return new

    def finish(self) -> str:
        """What was still waiting, with U+FFFD for the incomplete character."""
        rest = self._tokenizer.decode(self._ids)[self._shown :] if self._ids else ""
        self._ids, self._shown, self._before = [], 0, 0
        return rest

    def _forget(self) -> None:
        """Keep the latest ids that have a text: more of what came before does not matter to a decoder."""
        latest = self._ids[self._before :]
        text = self._tokenizer.decode(latest)
        if text:
            self._ids, self._shown = latest, len(text)
        self._before = len(self._ids)
