"""What a stranger is told when the file system refuses a write."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from kssm_mlx.errors import CheckpointError

_ADVICE = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free space in your quota",
    errno.EROFS: "the volume is read-only: choose another folder",
}


@contextlib.contextmanager
def writing(what: str, folder: str | Path) -> Iterator[None]:
    """Turn an OSError into one line: what could not be written, where, why, what to do.

    Raises: CheckpointError.
    """
    try:
        yield
    except OSError as e:
        advice = _ADVICE.get(e.errno, "choose a folder that you may write to")
        raise CheckpointError(f"cannot write {what} in {folder}: {e.strerror or e}; {advice}") from e
