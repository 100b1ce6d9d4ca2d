"""Large files from the hub into its cache: resumed where they stopped, hashed before the cache has them.

huggingface_hub names a file in its cache after its sha256, but does not check it, and (read in 2.4.0) throws
away what an interrupted process had received. Here the received part stays beside the cache entry, the next
call asks for the rest, and only bytes with the promised sha256 get the entry's name.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from kssm_mlx.digest import file_digest
from kssm_mlx.errors import ConfigError, WeightMismatch


class Promise(NamedTuple):
    """What the hub says a file is: its name in the repository, its size in bytes, its sha256."""

    name: str
    size: int
    sha256: str


def fetch(url: str, promise: Promise, blobs: Path) -> Path:
    """`blobs/SHA256` with the bytes behind `url`; does nothing if it is there already.

    Raises: ConfigError if the disk has no room; WeightMismatch if what was received has another sha256 (it is
    deleted, so the next call starts anew); whatever the connection raises, with the received part kept.
    """
    from huggingface_hub.utils import WeakFileLock

    blob = blobs / promise.sha256
    if blob.exists():
        return blob
    blobs.mkdir(parents=True, exist_ok=True)
    part = blobs / f"{promise.sha256}.part"
    with WeakFileLock(blobs / f"{promise.sha256}.lock"):
        if not blob.exists():  # another process may have been faster
            _receive(url, promise, part)
            _verify(promise, part)
            os.replace(part, blob)
    return blob


def _receive(url: str, promise: Promise, part: Path) -> None:
    """Append to `part` what is missing of the file."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with open(part, "ab") as f:
        # A longer part is of another file; the hash would tell, after a download to no avail.
        if f.tell() > promise.size:
            f.seek(0)
            f.truncate()
        _require_room(promise, f.tell(), part.parent)
        http_get(
            url,
            f,
            resume_size=f.tell(),
            headers=build_hf_headers(),
            expected_size=promise.size,
            displayed_filename=promise.name,
        )


def _require_room(promise: Promise, received: int, folder: Path) -> None:
    missing, free = promise.size - received, shutil.disk_usage(folder).free
    if missing > free:
        raise ConfigError(
            f"{promise.name} needs {missing / 1e9:.2f} GB more, {folder} has {free / 1e9:.2f} GB free; "
            "free disk space, or set HF_HOME to a folder on a larger volume"
        )


def _verify(promise: Promise, part: Path) -> None:
    got = file_digest(part)
    if got != promise.sha256:
        part.unlink()
        raise WeightMismatch(
            f"{promise.name} was received with sha256 {got[:12]}, the hub promises {promise.sha256[:12]}: "
            "damaged on its way; it was deleted, run again to download it anew"
        )
