"""One compilation of one text for all workers: `g++` on the PATH of the tests, in front of the real one.

Every worker has a cache of MLX's compiled kernels for itself, because MLX does not write them atomically; so
the same kernels would be compiled once a worker. What g++ made of the same sources and options is copied.
MLX's preamble, which begins every kernel and takes three quarters of its compilation, is precompiled.

It starts some hundred times in a run of the suite, so it imports little: half of a start was pathlib, shutil
and subprocess.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys

PREAMBLE = "mlx/backend/cpu/compiled_preamble.h"

SCRIPT = """#!{python} -ES
import sys
sys.path.insert(0, {root!r})
from tests.support.compiler import main
sys.exit(main({real!r}, {cache!r}, sys.argv[1:]))
"""


def install(folder: str) -> None:
    """Put the wrapper in front of g++ for this process and those that it starts."""
    import shutil

    real = shutil.which("g++")
    if real is None or "KSSM_TEST_COMPILER" in os.environ:
        return
    wrapper = f"{folder}/bin/g++"
    os.mkdir(f"{folder}/bin")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with open(wrapper, "w") as file:
        file.write(SCRIPT.format(python=sys.executable, root=root, real=real, cache=folder))
    os.chmod(wrapper, 0o755)
    os.environ["PATH"] = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
    os.environ["KSSM_TEST_COMPILER"] = wrapper


def main(real: str, cache: str, arguments: list[str]) -> int:
    """g++ with these arguments, or a copy of what it made of them before."""
    made = _output(arguments)
    key = _key(arguments, made)
    if made is None or key is None:
        return run([real, *arguments])
    kept = f"{cache}/{key}"
    with open(f"{kept}.lock", "w") as lock:
        # Workers often want the same at the same time; who comes second waits, and copies.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(kept):
            _copy(kept, made)
            return 0
        code = run([real, *_preamble(real, cache, arguments), *arguments])
        if code == 0:
            _copy(made, kept)
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


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _preamble(real: str, cache: str, arguments: list[str]) -> list[str]:
    """What to say to g++ so that it takes MLX's preamble in its precompiled form; nothing for other sources.

    The first who needs it makes it; who needs it meanwhile goes without, and the code is the same.
    """
    sources, include = _sources(arguments), f'#include "{PREAMBLE}"\n'
    if len(sources) != 1 or not _read(sources[0]).startswith(include.encode()):
        return []
    unlike = {*sources, _output(arguments), "-o", "-shared"}
    options = [a for a in arguments if a not in unlike]
    folder = f"{cache}/{hashlib.sha256(chr(0).join(options).encode()).hexdigest()}"
    header = f"{folder}/preamble.h"
    try:
        os.mkdir(folder)
    except FileExistsError:
        pass
    else:
        with open(header, "w") as file:
            file.write(include)
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
