"""One compilation of one text for all workers: `g++` on the PATH of the tests, in front of the real one.

Every worker has a cache of MLX's compiled kernels for itself, because MLX does not write them atomically; so
the same kernels would be compiled once a worker. What g++ made of the same sources and options is copied.
MLX's preamble, which begins every kernel and takes three quarters of its compilation, is precompiled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PREAMBLE = "mlx/backend/cpu/compiled_preamble.h"

SCRIPT = """#!{python} -S
import sys
sys.path.insert(0, {root!r})
from tests.support.compiler import main
sys.exit(main({real!r}, {cache!r}, sys.argv[1:]))
"""


def install(folder: Path) -> None:
    """Put the wrapper in front of g++ for this process and those that it starts."""
    real = shutil.which("g++")
    if real is None or "KSSM_TEST_COMPILER" in os.environ:
        return
    wrapper = folder / "bin" / "g++"
    wrapper.parent.mkdir()
    root = str(Path(__file__).parents[2])
    wrapper.write_text(SCRIPT.format(python=sys.executable, root=root, real=real, cache=str(folder)))
    wrapper.chmod(0o755)
    os.environ["PATH"] = f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["KSSM_TEST_COMPILER"] = str(wrapper)


def main(real: str, cache: str, arguments: list[str]) -> int:
    """g++ with these arguments, or a copy of what it made of them before."""
    made = _output(arguments)
    key = _key(arguments, made)
    if made is None or key is None:
        return subprocess.run([real, *arguments]).returncode
    kept = Path(cache) / key
    if not kept.exists():
        code = subprocess.run([real, *_preamble(real, Path(cache), arguments), *arguments]).returncode
        if code == 0:
            _copy(made, kept)
        return code
    _copy(kept, made)
    return 0


def _output(arguments: list[str]) -> Path | None:
    at = arguments.index("-o") + 1 if "-o" in arguments[:-1] else None
    return None if at is None else Path(arguments[at])


def _key(arguments: list[str], made: Path | None) -> str | None:
    """Of the options and the contents of the sources, wherever they lie; None where there are none."""
    sources = _sources(arguments)
    if not sources:
        return None
    digest = hashlib.sha256("\0".join(a for a in arguments if a not in sources and a != str(made)).encode())
    for source in sources:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def _sources(arguments: list[str]) -> list[str]:
    return [a for a in arguments if a.endswith((".cpp", ".cc"))]


def _preamble(real: str, cache: Path, arguments: list[str]) -> list[str]:
    """What to say to g++ so that it takes MLX's preamble in its precompiled form; nothing for other sources.

    The first who needs it makes it; who needs it meanwhile goes without, and the code is the same.
    """
    sources, include = _sources(arguments), f'#include "{PREAMBLE}"\n'
    if len(sources) != 1 or not Path(sources[0]).read_text().startswith(include):
        return []
    unlike = {*sources, str(_output(arguments)), "-o", "-shared"}
    options = [a for a in arguments if a not in unlike]
    header = cache / hashlib.sha256("\0".join(options).encode()).hexdigest() / "preamble.h"
    precompiled = header.with_suffix(".h.gch")
    with suppress(FileExistsError):
        header.parent.mkdir()
        header.write_text(include)
        made = header.with_suffix(".made")
        command = [real, "-w", *options, "-x", "c++-header", str(header), "-o", str(made)]
        if subprocess.run(command).returncode == 0:
            os.replace(made, precompiled)
    return ["-include", str(header)] if precompiled.exists() else []


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all: another worker may look for it meanwhile."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    temporary.chmod(0o755)
    os.replace(temporary, target)
