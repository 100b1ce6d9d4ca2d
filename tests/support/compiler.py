"""One compilation of one text for all workers: `g++` on the PATH of the tests, in front of the real one.

Every worker has a cache of MLX's compiled kernels for itself, because MLX does not write them atomically; so
the same kernels would be compiled once a worker. What g++ made of the same sources and options is copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
        code = subprocess.run([real, *arguments]).returncode
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
    sources = [a for a in arguments if a.endswith((".cpp", ".cc"))]
    if not sources:
        return None
    digest = hashlib.sha256("\0".join(a for a in arguments if a not in sources and a != str(made)).encode())
    for source in sources:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all: another worker may look for it meanwhile."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    temporary.chmod(0o755)
    os.replace(temporary, target)
