"""One run, one folder: a lock file that names its holder and that a dead holder cannot keep.

The file is created with O_EXCL and holds the process id, when that process started and the host. A process
id alone is not an identity, because ids are reused; with the start time it is. Judging a stale lock and
taking it over are two steps, so both happen under a kernel lock that vanishes with its process: among any
number of processes that find the same stale lock, exactly one gets it.

Source: liminal.md C39 (the precursors checked, then wrote, and took "permission denied" for "dead").
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kssm_mlx.errors import CheckpointError
from kssm_mlx.training.disk import writing

NAME = "run.lock"


class Owner(NamedTuple):
    """Who holds a lock; `start` is an opaque name for the moment the process began, "" if unknown."""

    pid: int
    start: str
    host: str


def alive(pid: int) -> bool:
    """Whether a process of this host exists. Not being allowed to signal it means that it does."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def start_time(pid: int) -> str:
    """When process `pid` began, as a string to compare for equality; "" where the system does not tell.

    A process that has ended but was not reaped by its parent (usual in containers) answers "ended".
    Linux: boot id and clock ticks since boot, from /proc. macOS: `ps -o lstart=`.
    """
    if not Path("/proc/self/stat").exists():
        ps = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
        state, _, start = ps.stdout.strip().partition(" ")
        return "ended" if state.startswith("Z") else start.strip()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from field 3, the state
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def this_process() -> Owner:
    return Owner(os.getpid(), start_time(os.getpid()), socket.gethostname())


def mine(folder: str | Path) -> bool:
    """Whether this very process holds the lock of `folder`."""
    return _read(Path(folder) / NAME) == this_process()


@contextlib.contextmanager
def hold(folder: str | Path) -> Iterator[Path]:
    """Hold the lock of a run folder for the duration of a `with` block.

    Raises: CheckpointError if another run holds it, naming the holder and what to do.
    """
    path = Path(folder) / NAME
    with writing(NAME, folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(path)
    try:
        yield path
    finally:
        if mine(folder):
            path.unlink(missing_ok=True)


def _acquire(path: Path) -> None:
    with _one_at_a_time(path):
        if path.exists():
            _refuse_if_held(path)
            path.unlink(missing_ok=True)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with os.fdopen(fd, "w") as f:
            json.dump(this_process()._asdict(), f)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """A kernel lock around judging and creating `path`; it cannot go stale, and its empty file stays."""
    with open(path.with_name(f".{path.name}.guard"), "a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> Owner | None:
    """The owner written in a lock file; None if there is none, or it died before it had written its name."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _refuse_if_held(path: Path) -> None:
    owner, here = _read(path), this_process()
    if owner is None:
        return
    who = f"process {owner.pid} on {owner.host}"
    if owner.host != here.host:
        raise CheckpointError(
            f"{path.parent} is in use by {who}, and from {here.host} I cannot see whether that run is alive; "
            f"if it is over, delete {path}"
        )
    if alive(owner.pid) and start_time(owner.pid) in (owner.start, ""):
        raise CheckpointError(
            f"{path.parent} is in use by {who}, which is running; wait for it or choose another folder"
        )
