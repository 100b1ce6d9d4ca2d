"""Texts as they come: in, as bytes, and out, for people and as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import typer

from kssm_mlx.terminal import printable

STDIN = "standard input"
FIELDS = ("prompt", "text", "ids", "logprobs", "finished")


def decode_utf8(raw: bytes, name: str, at: int = 0) -> str:
    """The text of these bytes. name, at: for an error, where they come from and how many came before them.

    Raises: DataError, which names the byte, for what is not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        from kssm_mlx.data.corpora.text_files import not_utf8

        raise not_utf8(name, at + e.start, raw[e.start], e.reason) from None


class Show:
    """Pieces of texts; without JSON of one text, its prompt before the first piece: what cannot be begun
    shows nothing.
    """

    def __init__(self, prompt: str = "", as_json: bool = False):
        self.prompt, self.as_json, self.begun = prompt, as_json, False

    def write(self, piece: Any) -> None:
        if self.as_json:
            self._write_out(json.dumps({"row": piece.row, "piece": piece.text}) + "\n")
        else:
            self.begin()
            self._write_out(printable(piece.text))

    def begin(self) -> None:
        if not self.begun:
            self._write_out(printable(self.prompt))
            self.begun = True

    def end(self) -> None:
        self.begin()
        self._write_out("\n")

    def _write_out(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def print_texts(completions: list[Any]) -> None:
    for number, completion in enumerate(completions, start=1):
        heading = f"[{number}] " if len(completions) > 1 else ""
        typer.echo(f"{heading}{printable(completion.prompt + completion.text)}")


def print_json(completions: Iterable[Any], trained: Any) -> None:
    """One line a text, with everything that is known of it."""
    model = {"model": trained.source, "digest": trained.digest}
    for row, completion in enumerate(completions):
        told = {name: getattr(completion, name) for name in FIELDS}
        typer.echo(json.dumps({"row": row, **told, **model}))
