"""Text files as users have them: read as UTF-8 or refused with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kssm_mlx.errors import DataError

ENDINGS = (".txt", ".text", ".md", ".markdown")
REPLACED = 1e-5  # most U+FFFD per character in a prepared corpus: more is text that was decoded wrongly


def refuse_replaced(text: str, where: str | Path) -> None:
    """Raises: DataError for text in which more than `REPLACED` of the characters are U+FFFD."""
    count = text.count("\ufffd")
    if count > REPLACED * len(text):
        raise DataError(
            f"{where}: {count} of {len(text)} characters are U+FFFD, a share of more than {REPLACED:g}; it "
            "was once decoded with the wrong encoding or tokenizer, so take it from its source again"
        )


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises: DataError, which names the byte, for a file that is missing, forbidden, a folder or not text.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise unreadable(path, e) from None
    if (nul := raw.find(b"\0")) >= 0:
        raise DataError(f"{path} is not text: byte {nul} is NUL; expected UTF-8 text")
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise not_utf8(path, e.start, raw[e.start], e.reason) from None


def not_utf8(path: Path | str, place: int, byte: int, reason: str) -> DataError:
    """One byte of a file, or of another source of this name, that is no text."""
    return DataError(
        f"{path} is not UTF-8: byte {place} is 0x{byte:02x} ({reason}); "
        "convert it first, for example with iconv -f LATIN1 -t UTF-8"
    )


def text_files(root: Path) -> Iterator[Path]:
    """Paths of the text files below `root` (`ENDINGS`, in capitals or not), hidden folders left out.

    A linked folder is entered, each folder once, so that a link to one above makes no circle.
    """
    seen: set[tuple[int, int]] = set()

    def stop(e: OSError):
        raise unreadable(Path(e.filename), e) from None

    for folder, subfolders, names in os.walk(root, onerror=stop, followlinks=True):
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) in seen:
            subfolders[:] = []
            continue
        seen.add((facts.st_dev, facts.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in names if name.lower().endswith(ENDINGS))


def unreadable(path: Path, e: OSError) -> DataError:
    """A file that cannot be opened, and why."""
    if isinstance(e, FileNotFoundError):
        return DataError(f"{path} does not exist; data.source takes a path from where you start kssm")
    return DataError(f"cannot read {path}: {(e.strerror or type(e).__name__).lower()}")
