"""Compiled code is loaded from folders of the user's own, whole and written by nobody else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kssm_mlx import _blas, _caches

pytestmark = pytest.mark.linux
ROOT = Path(__file__).parents[1]
CODE = 'extern "C" int answer() { return 42; }'


def build(path: Path) -> None:
    _blas.compile_library(CODE, path)


@pytest.fixture
def library(tmp_path) -> Path:
    path = tmp_path / "answer.so"
    build(path)
    return path


@pytest.mark.parametrize("length", [0, 10, 63, 64, 0.5, 0.99])
def test_a_library_cut_short_is_told_from_a_whole_one(library, length):
    assert _caches.is_whole(library)
    size = library.stat().st_size
    os.truncate(library, length if isinstance(length, int) else int(length * size))
    assert not _caches.is_whole(library)


def test_a_library_cut_short_is_built_again(library):
    os.truncate(library, library.stat().st_size // 2)
    assert _caches.open_library(library, build).answer() == 42


def test_somebody_elses_library_is_not_loaded(library, monkeypatch):
    """As planted in a folder that others could write to."""
    library.chmod(0o666)
    built = []
    monkeypatch.setattr(_blas, "compile_library", lambda *_: built.append(1))
    with pytest.raises(RuntimeError):
        _caches.open_library(library, build)
    assert built == [1] and not library.exists()


def test_what_mlx_should_not_load_is_removed(library, tmp_path):
    folder = tmp_path / "mlx" / "0.32" / "cpu"
    folder.mkdir(parents=True)
    kept, loose, cut, young = (folder / f"lib{name}.so" for name in ("kept", "loose", "cut", "young"))
    for path in (kept, loose, cut, young):
        shutil.copy(library, path)
    loose.chmod(0o777)
    for path in (cut, young):
        os.truncate(path, 100)
    os.utime(cut, (time.time() - 3600,) * 2)
    (folder / "link.so").symlink_to(library)
    assert {p.name for p in _caches.remove_unsafe(tmp_path / "mlx")} == {
        "libloose.so",
        "libcut.so",
        "link.so",
    }
    assert sorted(p.name for p in folder.iterdir()) == ["libkept.so", "libyoung.so"]


def test_what_another_process_tidies_away_is_no_error(library, tmp_path, monkeypatch):
    """Several programs start at once, on one cache; a file can go between being listed and being judged."""
    folder = tmp_path / "mlx"
    folder.mkdir()
    cut = Path(shutil.copy(library, folder / "libcut.so"))
    os.truncate(cut, 100)

    def gone(path: Path) -> bool:
        path.unlink()
        return False

    monkeypatch.setattr(_caches, "is_whole", gone)
    assert _caches.remove_unsafe(folder) == [] and list(folder.iterdir()) == []


COMPILE = """
import os, tempfile
import kssm_mlx
import mlx.core as mx
mx.eval(mx.compile(lambda x: mx.sin(x) * 2 + 1)(mx.ones(3)))
print(os.environ["TMPDIR"], tempfile.gettempdir())
"""


def run(**environment: str) -> tuple[str, str]:
    env = {**os.environ, **environment}
    env.pop(_caches.ORIGINAL, None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=env, cwd=ROOT, capture_output=True, text=True, check=True
    )
    mlx, python = done.stdout.split()
    return mlx, python


def test_mlx_compiles_into_a_folder_of_the_users_own(tmp_path):
    """Another user's library in the shared folder of temporary files is not looked at."""
    shared, home = tmp_path / "tmp", tmp_path / "home"
    (shared / "mlx").mkdir(parents=True)
    (shared / "mlx").chmod(0o555)  # of somebody else: nothing can be written there
    mlx, python = run(TMPDIR=str(shared), XDG_CACHE_HOME=str(home))
    assert mlx == str(home / "kssm-mlx" / "mlx") and python == str(shared)
    assert list((home / "kssm-mlx" / "mlx").rglob("*.so"))
    assert list((shared / "mlx").iterdir()) == []


def test_a_tmpdir_that_does_not_exist_is_no_matter(tmp_path):
    mlx, python = run(TMPDIR=str(tmp_path / "absent"), XDG_CACHE_HOME=str(tmp_path))
    assert mlx == str(tmp_path / "kssm-mlx" / "mlx") and Path(python).is_dir()


def test_without_a_home_a_process_has_a_folder_for_itself(tmp_path):
    (tmp_path / "file").write_text("")
    mlx, _ = run(XDG_CACHE_HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path))
    assert Path(mlx).name.startswith("kssm-mlx-jit-") and not Path(mlx).exists()


def test_a_process_of_ours_leaves_the_temporary_files_of_another_alone(tmp_path):
    """TMPDIR is inherited, and what a program puts there, links too, is its own affair."""
    home = tmp_path / "home"
    mlx, _ = run(XDG_CACHE_HOME=str(home))
    theirs = Path(mlx) / "theirs"
    theirs.mkdir()
    (theirs / "link").symlink_to(tmp_path)
    (theirs / "short.so").write_bytes(b"")
    os.utime(theirs / "short.so", (0, 0))
    run(XDG_CACHE_HOME=str(home), TMPDIR=mlx)
    assert sorted(p.name for p in theirs.iterdir()) == ["link", "short.so"]
