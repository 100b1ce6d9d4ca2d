"""One compilation of one text for all workers: `g++` on the PATH of the tests, in front of the real one.

Every worker has a cache of MLX's compiled kernels for itself, because MLX does not write them atomically; so
the same kernels would be compiled once a worker. What g++ made of the same sources and options is copied.
MLX's preamble, which begins every kernel and takes three quarters of its compilation, is precompiled.
Kernels of MLX are kept in pytest's cache folder, for the next run of the suite with the same MLX and g++.

It starts some hundred times in a run of the suite, so it imports little: half of a start was pathlib, shutil
and subprocess.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import time

PREAMBLE = "mlx/backend/cpu/compiled_preamble.h"
INCLUDE = f'#include "{PREAMBLE}"\n'

SCRIPT = """#!{python} -ES
import sys
sys.path.insert(0, {root!r})
from tests.support.compiler import main
sys.exit(main({real!r}, {cache!r}, {kept!r}, sys.argv[1:]))
"""

# What no run of the suite has asked for in this time belongs to code that has changed.
FORGET_AFTER_DAYS = 14


def install(folder: str, kept: str | None = None) -> None:
    """Put the wrapper in front of g++ for this process and those that it starts.

    What it makes lies in `folder`, which ends with this run of the suite; MLX's kernels in `kept`, if given.
    """
    import shutil

    real = shutil.which("g++")
    if real is None or "KSSM_TEST_COMPILER" in os.environ:
        return
    wrapper = f"{folder}/bin/g++"
    os.mkdir(f"{folder}/bin")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with open(wrapper, "w") as file:
        kept = kept and keep_for(kept, real)
        file.write(SCRIPT.format(python=sys.executable, root=root, real=real, cache=folder, kept=kept))
    os.chmod(wrapper, 0o755)
    os.environ["PATH"] = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
    os.environ["KSSM_TEST_COMPILER"] = wrapper


def keep_for(folder: str, real: str) -> str:
    """The folder inside this one for kernels by this MLX and this g++. Others' kernels are deleted, and those
    that were not asked for lately.
    """
    import shutil

    import mlx.core as mx

    stat = os.stat(os.path.realpath(real))
    makers = f"{mx.__version__} {mx.__file__} {os.path.realpath(real)} {stat.st_size} {stat.st_mtime_ns}"
    at = f"{folder}/{hashlib.sha256(makers.encode()).hexdigest()[:16]}"
    os.makedirs(at, exist_ok=True)
    for other in os.listdir(folder):
        if f"{folder}/{other}" != at:
            shutil.rmtree(f"{folder}/{other}", ignore_errors=True)
    oldest = time.time() - FORGET_AFTER_DAYS * 86400
    for entry in os.scandir(at):
        if entry.stat().st_mtime < oldest:
            os.unlink(entry.path)
    return at


def main(real: str, cache: str, kept: str | None, arguments: list[str]) -> int:
    """g++ with these arguments, or a copy of what it made of them before.

    Only MLX's kernels are taken from an earlier run: their text and MLX's version say all that is in them,
    while other sources include files that may have changed.
    """
    made = _output(arguments)
    key = _key(arguments, made)
    if made is None or key is None:
        return run([real, *arguments])
    at = f"{kept if kept and _is_kernel(arguments) else cache}/{key}"
    # Workers often want the same at the same time; who comes second waits, and copies.
    with open(f"{cache}/{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(at):
            _copy(at, made)
            os.utime(at)
            return 0
        code = run([real, *_preamble(real, cache, arguments), *arguments])
        if code == 0:
            _copy(made, at)
        return code


def run(command: list[str]) -> int:
    """The exit code of a program."""
    return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)[1])


def _output(arguments: list[str]) -> str | None:
    return arguments[arguments.index("-o") + 1] if "-o" in arguments[:-1] else None


def _key(arguments: list[str], made: str | None) -> str | None:
    """Of the options and the contents of the sources, wherever they lie; None where there are none."""
    sources = _sources(arguments)
    if not sources:
        return None
    digest = hashlib.sha256("\0".join(a for a in arguments if a not in sources and a != made).encode())
    for source in sources:
        digest.update(_read(source))
    return digest.hexdigest()


def _sources(arguments: list[str]) -> list[str]:
    return [a for a in arguments if a.endswith((".cpp", ".cc"))]


def _is_kernel(arguments: list[str]) -> bool:
    """Whether one kernel of MLX is compiled, and nothing else."""
    sources = _sources(arguments)
    return len(sources) == 1 and _read(sources[0]).startswith(INCLUDE.encode())


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _preamble(real: str, cache: str, arguments: list[str]) -> list[str]:
    """What to say to g++ so that it takes MLX's preamble in its precompiled form; nothing for other sources.

    The first who needs it makes it; who needs it meanwhile goes without, and the code is the same.
    """
    if not _is_kernel(arguments):
        return []
    unlike = {*_sources(arguments), _output(arguments), "-o", "-shared"}
    options = [a for a in arguments if a not in unlike]
    folder = f"{cache}/{hashlib.sha256(chr(0).join(options).encode()).hexdigest()}"
    header = f"{folder}/preamble.h"
    try:
        os.mkdir(folder)
    except FileExistsError:
        pass
    else:
        with open(header, "w") as file:
            file.write(INCLUDE)
        if run([real, "-w", *options, "-x", "c++-header", header, "-o", f"{header}.made"]) == 0:
            os.replace(f"{header}.made", f"{header}.gch")
    return ["-include", header] if os.path.exists(f"{header}.gch") else []


def _copy(source: str, target: str) -> None:
    """Whole or not at all: another worker may look for it meanwhile."""
    temporary = f"{target}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(_read(source))
    os.chmod(temporary, 0o755)
    os.replace(temporary, target)
