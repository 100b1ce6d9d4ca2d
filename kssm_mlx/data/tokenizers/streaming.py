"""Text of tokens that arrive one at a time, in pieces that join to the decoding of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kssm_mlx.data.tokenizers.protocol import Tokenizer


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
