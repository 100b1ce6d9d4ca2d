"""Writing files so that a crash leaves the old content or the new one, never half of either."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kssm_mlx.errors import CheckpointError, ConfigError

ABANDONED = 600.0  # seconds after which nobody writes a temporary file any more
_ADVICE = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free space in your quota",
    errno.EROFS: "the volume is read-only: choose another folder",
}


def sync(fd: int) -> None:
    """Push a file descriptor to the platter. Plain fsync stops at the drive's cache on macOS."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError:  # some network volumes refuse it
            pass
    os.fsync(fd)


def sync_folder(folder: str | Path) -> None:
    """Make renames inside `folder` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Create `path`, which must not exist, let `write` fill it through a binary file, and flush it."""
    # O_EXCL: a link that somebody planted under this name is not followed, it is an error.
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o666)
    with os.fdopen(fd, "w+b") as f:
        write(f)
        f.flush()
        sync(f.fileno())


def replace(path: str | Path, data: str | bytes) -> None:
    """Give `path` the content `data` in one atomic step (temporary file, fsync, rename)."""
    path = Path(path)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
    raw = data.encode() if isinstance(data, str) else data
    try:
        write_synced(temporary, lambda f: f.write(raw))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def require_writable(path: str | Path) -> None:
    """Before an hour is spent: can a file be put there? Raises: ConfigError if not."""
    probe = Path(path).with_name(f".{Path(path).name}.tmp-{secrets.token_hex(8)}")
    try:
        write_synced(probe, lambda f: None)
    except OSError as e:
        raise ConfigError(
            f"cannot write {path}: {(e.strerror or str(e)).lower()}; choose another place"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files of `path` whose writer died, which is told by their age."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.lstat().st_mtime > ABANDONED:
                leftover.unlink()


@contextlib.contextmanager
def explain_write_errors(what: str, folder: str | Path) -> Iterator[None]:
    """Turn an OSError into one line: what could not be written, where, why, what to do.

    Raises: CheckpointError.
    """
    try:
        yield
    except OSError as e:
        advice = _ADVICE.get(e.errno or 0, "choose a folder that you may write to")
        raise CheckpointError(f"cannot write {what} in {folder}: {e.strerror or e}; {advice}") from e
