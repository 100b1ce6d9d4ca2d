"""Folders here and on other machines, through the system's ssh and rsync: no server and no protocol of ours.

A place is written as rsync writes it: `path`, or `host:path` with whatever name ssh knows. Only options that
every rsync has are used, also the one of macOS.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kssm_mlx._caches import private_folder
from kssm_mlx.errors import CheckpointError, ConfigError, one_line
from kssm_mlx.runs import lock
from kssm_mlx.runs.layout import CHECKPOINTS, CHECKS, DATA, METRICS, PROBES, RECIPE, SAMPLES

SMALL = (RECIPE, METRICS, SAMPLES, CHECKS, PROBES, lock.NAME)
LARGE = (CHECKPOINTS, DATA, "plots")
_HOST = re.compile(r"([A-Za-z0-9][\w.@-]*):(.*)", re.DOTALL)  # never an option: it begins with a letter
_PLAIN = re.compile(r"[\w./~@%+=,][\w./~@%+=,-]*")  # older rsyncs hand the rest to a shell, which splits it
UNREACHABLE = 255  # ssh's own exit code
ABSENT = 66  # exit code of a script whose folder is not there
_ENTER = f"set -e\ncd {{}} 2>/dev/null || exit {ABSENT}\n"


class NoFolder(CheckpointError):
    """There is no such folder on that machine."""


class Place(NamedTuple):
    """A folder; host "" is this machine."""

    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.host}:{self.path}" if self.host else self.path

    def __truediv__(self, name: str) -> Place:
        return Place(self.host, f"{self.path.rstrip('/')}/{name}")


def parse_place(text: str) -> Place:
    """The folder that "studio:runs/a" means. Raises: ConfigError for a path that there cannot be, or none."""
    match = _HOST.fullmatch(text)
    if match is None or Path(text).exists():
        return Place("", str(Path(text).expanduser()))
    if not _PLAIN.fullmatch(match[2]):
        raise ConfigError(
            f"{text!r} names no folder on that machine; expected HOST:PATH, the path of letters, digits, ._-/"
        )
    return Place(match[1], match[2])


def copy(source: Place, target: Place, options: Sequence[str] = ()) -> None:
    """What is in one folder into another, by rsync -a.

    Raises: ConfigError without rsync; CheckpointError with what rsync said.
    """
    places = [f"{_format_place(place)}/" for place in (source, target)]
    _run([*_find_program("rsync"), "-a", *options, *places], f"cannot copy {source} to {target}")


def shell(place: Place, script: str, about: Place | None = None) -> str:
    """What a POSIX shell script prints on the machine of `place`, in the folder of `place`.

    about: the place that an error names, `place` by default.
    Raises: NoFolder; CheckpointError with what it said where its exit code is not 0.
    """
    command = ["sh", "-s"] if not place.host else [*_find_program("ssh"), place.host, "sh -s"]
    return _run(command, str(about or place), _ENTER.format(quote_path(place.path)) + script)


def quote_path(path: str) -> str:
    """A path for a shell; ~ at its beginning is the home there."""
    if path == "~" or path.startswith("~/"):
        return f'"$HOME"{shlex.quote(path[1:])}' if path != "~" else '"$HOME"'
    return shlex.quote(path if not path.startswith("-") else f"./{path}")


def mirror(place: Place) -> Path:
    """The small files of every run in a place, copied into a folder of the user's cache.

    Raises: NoFolder; as `copy`.
    """
    name = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    folder = private_folder() / "watched" / name / (Path(place.path).name or "runs")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"--include={name}" for name in SMALL]
    left_out = [f"--exclude={name}/" for name in LARGE]
    options = ["--delete", *left_out, "--include=*/", *wanted, "--exclude=*"]
    try:
        copy(place, Place("", str(folder)), options)
    except CheckpointError:
        shell(place, "")  # says in fewer words than rsync if the machine or the folder is not there
        raise
    return folder


def _format_place(place: Place) -> str:
    """As rsync reads it: without a host no colon may look like one."""
    path = place.path.rstrip("/") or "/"
    if place.host:
        return f"{place.host}:{path}"
    return path if path.startswith("/") else f"./{path}"


def _find_program(program: str) -> list[str]:
    path = shutil.which(program)
    if path is None:
        raise ConfigError(f"there is no {program} on this machine; install it, or copy the folder yourself")
    return [path]


def _run(command: list[str], what: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, errors="replace")
    if done.returncode == ABSENT:
        raise NoFolder(f"{what}: no such folder")
    if done.returncode:
        said = one_line(done.stderr or done.stdout, 300) or f"exit code {done.returncode}"
        hint = "; can you reach it with ssh?" if done.returncode == UNREACHABLE else ""
        raise CheckpointError(f"{what}: {said}{hint}")
    return done.stdout
