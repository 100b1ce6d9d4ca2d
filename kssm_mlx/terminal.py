"""Text that others wrote, made safe to show: no escape sequence reaches the terminal, no character ends in an
error because the terminal has no place for it.
"""

from __future__ import annotations

import codecs
import re
import sys

# Control characters but newline and tab, halves of surrogate pairs, and what turns the direction of a line.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_HANDLER = "kssm-terminal"


def printable(text: str) -> str:
    """The text with its control characters spelled out, such as `\\x1b`; line ends stay."""
    return _UNSAFE.sub(_spelled, text.replace("\r\n", "\n"))


def prepare_streams() -> None:
    """Characters that standard output and error cannot encode are replaced, which is said once."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=_HANDLER)


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


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
