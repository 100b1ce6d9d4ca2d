"""One run, one folder: a lock file that names its holder and that a dead holder cannot keep.

The file is created with O_EXCL and holds the process id, when that process started, the host and the
machine. A process id alone is not an identity, because ids are reused; with the start time it is. Judging a
stale lock and taking it over are two steps, so both happen under a kernel lock that vanishes with its
process: among any number of processes that find the same stale lock, exactly one gets it.

Source: docs/background/k-ssm.md#the-lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kssm_mlx.errors import CheckpointError
from kssm_mlx.files import explain_write_errors
from kssm_mlx.parsing import parse_json

NAME = "run.lock"
PROC = Path("/proc")


class Owner(NamedTuple):
    """Who holds a lock; `start` is an opaque name for the moment the process began, "" if unknown;
    `machine` as `machine_id` tells it.
    """

    pid: int
    start: str
    host: str
    machine: str = ""


def is_alive(pid: int) -> bool:
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
    if not (PROC / "self/stat").exists():
        ps = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "LC_ALL": "C",
                "TZ": "UTC",
            },  # one text for one moment, whoever asks from where
        )
        state, _, start = ps.stdout.strip().partition(" ")
        return "ended" if state.startswith("Z") else start.strip()
    try:
        fields = (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()  # from field 3, the state
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else f"{boot}:{fields[19]}"


@cache
def machine_id() -> str:
    """What names this machine when its host name changes, as a Mac's does with the network; "" if unknown.

    macOS: the hardware's IOPlatformUUID, from `ioreg`. Linux: /etc/machine-id.
    """
    try:
        if sys.platform != "darwin":
            return Path("/etc/machine-id").read_text().strip()
        asked = ["ioreg", "-rd1", "-c", "IOPlatformExpertDevice"]
        said = subprocess.run(asked, capture_output=True, text=True).stdout
    except OSError:
        return ""
    found = re.search(r'"IOPlatformUUID" = "([^"]+)"', said)
    return found.group(1) if found else ""


def this_process() -> Owner:
    return Owner(os.getpid(), start_time(os.getpid()), socket.gethostname(), machine_id())


def _is_elsewhere(owner: Owner, here: Owner) -> bool:
    """Whether the owner is a process of another machine, of which nothing can be seen from here.

    Linux's id tells machines of one name apart, and no more: clones and containers share it.
    """
    if owner.machine and here.machine and owner.machine != here.machine:
        return True
    return owner.host != here.host and not (sys.platform == "darwin" and owner.machine == here.machine != "")


def is_held_here(folder: str | Path) -> bool:
    """Whether this very process holds the lock of `folder`."""
    return _read_owner(Path(folder) / NAME) == this_process()


def is_held(folder: str | Path) -> bool:
    """Whether a process of this machine that lives holds the lock of `folder`."""
    owner = _read_owner(Path(folder) / NAME)
    if owner is None or _is_elsewhere(owner, this_process()):
        return False
    return is_alive(owner.pid) and start_time(owner.pid) in (owner.start, "")


def is_elsewhere(folder: str | Path) -> bool:
    """Whether a process of another machine has the lock of `folder`; whether it lives cannot be seen."""
    owner = _read_owner(Path(folder) / NAME)
    return owner is not None and _is_elsewhere(owner, this_process())


@contextlib.contextmanager
def hold(folder: str | Path) -> Iterator[Path]:
    """Hold the lock of a run folder for the duration of a `with` block. A folder that was made for it, and
    in which nothing was written, goes with it.

    Raises: CheckpointError if another run holds it, naming the holder and what to do.
    """
    path = Path(folder) / NAME
    new = not path.parent.exists()
    with explain_write_errors(NAME, folder):
        _acquire_lock(path)
    try:
        yield path
    finally:
        # Not if somebody has deleted the file, and another run has the folder by now.
        if is_held_here(folder):
            path.unlink(missing_ok=True)
        if new and path.parent.exists():
            _remove_empty_folder(path)


def _acquire_lock(path: Path) -> None:
    with _one_at_a_time(path):
        if path.exists():
            _refuse_if_held(path)
            path.unlink(missing_ok=True)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with os.fdopen(fd, "w") as f:
            json.dump(this_process()._asdict(), f)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """A kernel lock around judging and creating `path`; it cannot go stale."""
    guard = _guard_of(path)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(guard, "a")  # noqa: SIM115  closed below
        except FileNotFoundError:  # the folder went in between
            continue
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who waited for a file that is deleted by now has a lock that the next process does not see.
            if guard.exists() and os.path.samestat(os.fstat(file.fileno()), guard.stat()):
                yield
                return


def _guard_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.guard")


def _remove_empty_folder(path: Path) -> None:
    """Remove the folder of a lock where it holds nothing but the guard."""
    with _one_at_a_time(path), contextlib.suppress(OSError):
        if [*path.parent.iterdir()] == [_guard_of(path)]:
            _guard_of(path).unlink()
            path.parent.rmdir()


def _read_owner(path: Path) -> Owner | None:
    """The owner written in a lock file; None if there is none, or it died before it had written its name."""
    try:
        owner = Owner(**parse_json(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    texts = (owner.start, owner.host, owner.machine)
    sound = type(owner.pid) is int and owner.pid > 0 and all(isinstance(text, str) for text in texts)
    return owner if sound else None


def _refuse_if_held(path: Path) -> None:
    owner, here = _read_owner(path), this_process()
    if owner is None:
        return
    who = f"process {owner.pid} on {owner.host}"
    if _is_elsewhere(owner, here):
        raise CheckpointError(
            f"{path.parent} is in use by {who}, and from {here.host} I cannot see whether that run is alive; "
            f"if it is over, delete {path}"
        )
    # A start that cannot be read counts as the same process: better a folder refused than one shared.
    if is_alive(owner.pid) and start_time(owner.pid) in (owner.start, ""):
        raise CheckpointError(
            f"{path.parent} is in use by {who}, which is running; wait for it or choose another folder"
        )
