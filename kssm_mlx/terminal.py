"""Text that others wrote, made safe to show: no escape sequence reaches the terminal, no character ends in an
error because the terminal has no place for it; and a bar for what takes long.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

# Control characters but newline and tab, halves of surrogate pairs, and what turns the direction of a line.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_HANDLER = "kssm-terminal"


def printable(text: str) -> str:
    """The text with its control characters spelled out, such as `\\x1b`; line ends stay."""
    return _UNSAFE.sub(_spell_character, text.replace("\r\n", "\n"))


def prepare_streams() -> None:
    """Characters that standard output and error cannot encode are replaced, which is said once."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=_HANDLER)


class Bytes:
    """A progress bar in bytes, on a terminal; nothing elsewhere.

    `with Bytes() as meter: meter.start(total); meter.advance(n)`
    """

    def __init__(self, quiet: bool = False):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        console = Console(stderr=True)
        columns = (TextColumn("reading"), BarColumn(bar_width=32), DownloadColumn(), TransferSpeedColumn())
        shown = console.is_terminal and not quiet
        self._bar = Progress(*columns, console=console, disable=not shown, transient=True)
        self._task = self._bar.add_task("reading", total=None)

    def __enter__(self) -> Bytes:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def start(self, total: int) -> None:
        self._bar.update(self._task, total=total)

    def advance(self, n: int) -> None:
        self._bar.advance(self._task, n)

    def count_texts(self, texts: Sequence[str]) -> Iterator[str]:
        """`texts`, each counted when the next one is asked for."""
        return self.count_pieces(texts, sum(len(text.encode()) for text in texts))

    def count_pieces(self, texts: Iterable[str], nbytes: int) -> Iterator[str]:
        """The same of texts that come one by one, `nbytes` together."""
        self.start(nbytes)
        for text in texts:
            yield text
            self.advance(len(text.encode()))


class _Replace:
    """The error handler. `said`: whether the user knows."""

    said = False

    def __call__(self, error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        if not self.said:
            self.said = True
            # In ASCII, so that this line cannot come back here.
            sys.stderr.write(
                f"kssm: '?' stands for characters that {error.encoding} output cannot show; "
                "PYTHONIOENCODING=utf-8 shows them\n"
            )
        return "?" * (error.end - error.start), error.end


codecs.register_error(_HANDLER, _Replace())


def _spell_character(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
