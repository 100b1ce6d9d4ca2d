"""Where compiled code is kept: a folder of the user's own, in which nobody else could have planted a library.

    ~/.cache/kssm-mlx/            ($XDG_CACHE_HOME) our libraries, mode 700
    ~/.cache/kssm-mlx/mlx/        what MLX compiles on Linux

MLX keeps the libraries of `mx.compile` in $TMPDIR/mlx/VERSION/cpu and loads what lies there under the name it
looks for. In a /tmp that all users share, that is somebody else's code, or a folder that this user cannot
write to. So TMPDIR is this folder before mlx compiles anything, and Python's own temporary files stay where
they were.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ORIGINAL = "KSSM_TMPDIR"  # what TMPDIR stood for before this module changed it
SETTLED = 60.0  # seconds after which a library that is not whole has no writer any more


def private_folder() -> Path:
    """The user's cache folder.

    Raises: RuntimeError where it cannot be made, or others could write to it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "kssm-mlx"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeError(f"cannot make {folder} ({error.strerror}); set XDG_CACHE_HOME") from None
    if not is_private(folder):
        raise RuntimeError(
            f"{folder} must be yours and writable only by you; others may have put code there: delete it"
        )
    return folder


def is_private(path: Path) -> bool:
    """Whether a file or folder is this user's and nobody else may write to it; links never are."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    # A group of one's own (umask 002) is nobody else.
    others = facts.st_mode & 0o002 or (facts.st_mode & 0o020 and facts.st_gid != os.getgid())
    return facts.st_uid == os.getuid() and not others and not path.is_symlink()


def is_whole(library: Path) -> bool:
    """Whether an ELF library is as long as the table at its end says; on Linux nothing else is a library."""
    try:
        with open(library, "rb") as file:
            header = file.read(64)
        size = library.stat().st_size
    except OSError:
        return False
    if not header.startswith(b"\x7fELF\x02\x01"):
        return sys.platform != "linux"
    if len(header) < 64:
        return False
    (offset,) = struct.unpack_from("<Q", header, 40)
    entry, count = struct.unpack_from("<HH", header, 58)
    return size >= offset + entry * count


def open_library(path: Path, build: Callable[[Path], None], mode: int = ctypes.RTLD_LOCAL) -> ctypes.CDLL:
    """The library at `path`, built where it is absent, cut short, or somebody else's.

    Raises: RuntimeError from `build`, or where what was just built does not load.
    """
    if path.exists() and not (is_private(path) and is_whole(path)):
        path.unlink()
    if not path.exists():
        build(path)
    try:
        return ctypes.CDLL(str(path), mode)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise RuntimeError(f"{error}; it was deleted and is built again next time") from None


def use_private_cache_for_mlx() -> None:
    """Give MLX a folder for its compiled kernels that is this user's alone. Never raises; Linux only."""
    if sys.platform != "linux":
        return
    own = _own_temporary_folder()
    try:
        folder = private_folder() / "mlx"
        folder.mkdir(mode=0o700, exist_ok=True)
        if not is_private(folder):
            raise RuntimeError(f"{folder} is not private")
    except (RuntimeError, OSError):  # an unwritable home: a folder for this process alone
        folder = Path(tempfile.mkdtemp(prefix="kssm-mlx-jit-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    remove_unsafe(folder / "mlx")  # and nothing else: programs that are started from here use TMPDIR too
    os.environ |= {"TMPDIR": str(folder), ORIGINAL: own}
    tempfile.tempdir = own


def _own_temporary_folder() -> str:
    """Where Python's temporary files go, also in a process that was started by one of ours."""
    original = os.environ.get(ORIGINAL, "")
    return original if Path(original).is_dir() and original else tempfile.gettempdir()


def _has_writer(library: Path) -> bool:
    """Whether a library that is not whole is so young that a compiler may still be writing it."""
    try:
        return time.time() - library.lstat().st_mtime <= SETTLED
    except FileNotFoundError:
        return True


def remove_unsafe(folder: Path) -> list[Path]:
    """Delete what MLX should not load: files and folders that others could have written, libraries cut short.

    Other processes compile into it and tidy it meanwhile: what is gone is no error.
    """
    removed = []
    inside = [Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)]
    for path in sorted(inside, reverse=True):
        if is_private(path) and (path.suffix != ".so" or is_whole(path) or _has_writer(path)):
            continue
        removed.append(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return removed
