"""The compiler of the tests: what it made of one text it does not make twice."""

import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import pytest

from tests.support import compiler

pytestmark = pytest.mark.linux
OF_MLX = (
    f'#include "{compiler.PREAMBLE}"\nextern "C" float f(float x) {{ return mlx::core::detail::Exp()(x); }}\n'
)
INCLUDE = ("-std=c++17", "-w", "-I", str(Path(mx.__file__).parent / "include"))
QUICK = (*INCLUDE, "-O0")
ONE, TWO = 'extern "C" int f() { return 1; }\n', 'extern "C" int f() { return 2; }\n'


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """compile(folder, text, option) -> (exit code, bytes), and how often the real one ran."""
    real, runs = shutil.which("g++"), []
    run = compiler.run
    monkeypatch.setattr(compiler, "run", lambda command: runs.append(command) or run(command))
    (tmp_path / "cache").mkdir()

    def compile(folder: str, text: str, *options: str, kept: str | None = None):
        at = tmp_path / folder
        at.mkdir(exist_ok=True)
        (at / "f.cpp").write_text(text)
        code = compiler.main(
            real,
            str(tmp_path / "cache"),
            kept,
            [*(options or ["-O1"]), "-shared", "-fPIC", str(at / "f.cpp"), "-o", str(at / "f.so")],
        )
        return code, (at / "f.so").read_bytes() if code == 0 else b""

    return compile, runs


def test_one_text_is_compiled_once_wherever_it_lies(compiled):
    compile, runs = compiled
    assert compile("a", ONE) == compile("b", ONE)
    assert len(runs) == 1


def test_who_wants_it_while_it_is_made_waits_for_it(compiled, monkeypatch):
    compile, runs = compiled
    begun, second, run = threading.Event(), threading.Event(), compiler.run

    def run_slowly(command):
        (second if begun.is_set() else begun).set()
        second.wait(0.5)  # never set where the other waits
        return run(command)

    monkeypatch.setattr(compiler, "run", run_slowly)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(compile, "a", ONE)
        begun.wait()
        assert pool.submit(compile, "b", ONE).result() == first.result()
    assert len(runs) == 1


def test_another_text_or_option_is_another_library(compiled):
    compile, runs = compiled
    _, one = compile("a", ONE)
    _, two = compile("a", TWO)
    assert one != two
    compile("a", ONE, "-O2")
    assert len(runs) == 3


def test_what_does_not_compile_is_not_kept(compiled, capfd):
    compile, runs = compiled
    assert compile("a", "int f( {")[0] != 0 and compile("a", "int f( {")[0] != 0
    assert len(runs) == 2 and "error" in capfd.readouterr().err


def test_mlx_s_preamble_is_compiled_once_and_changes_nothing(compiled, tmp_path):
    compile, runs = compiled
    options = (*INCLUDE, "-O3")
    _, made = compile("a", OF_MLX, *options)
    assert made and [command for command in runs if "c++-header" in command]
    assert "-include" in runs[-1] and list((tmp_path / "cache").glob("*/preamble.h.gch"))
    before = len(runs)
    assert compile("b", OF_MLX + "// another\n", *options)[1] == made
    assert len(runs) == before + 1

    plain = tmp_path / "plain.so"
    command = [runs[0][0], *options, "-shared", "-fPIC", str(tmp_path / "a" / "f.cpp"), "-o", str(plain)]
    subprocess.run(command, check=True)
    assert plain.read_bytes() == made


def end_of_the_suite(tmp_path):
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()


def test_a_kernel_is_there_for_the_next_run_of_the_suite_which_is_remembered(compiled, tmp_path):
    compile, runs = compiled
    kept = compiler.keep_for(str(tmp_path / "kept"), shutil.which("g++"))
    made = compile("a", OF_MLX, *QUICK, kept=kept)
    before = len(runs)
    end_of_the_suite(tmp_path)
    assert compiler.keep_for(str(tmp_path / "kept"), shutil.which("g++")) == kept
    (kernel,) = Path(kept).iterdir()
    os.utime(kernel, (0, 0))
    assert compile("b", OF_MLX, *QUICK, kept=kept) == made and len(runs) == before
    assert kernel.stat().st_mtime > 0


def test_what_may_include_a_changed_file_is_not(compiled, tmp_path):
    compile, runs = compiled
    (tmp_path / "kept").mkdir()
    compile("a", ONE, kept=str(tmp_path / "kept"))
    end_of_the_suite(tmp_path)
    compile("b", ONE, kept=str(tmp_path / "kept"))
    assert len(runs) == 2 and not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("which", ["MLX", "g++"])
def test_kernels_of_another_mlx_or_compiler_are_deleted(which, tmp_path, monkeypatch):
    real = tmp_path / "g++"
    real.touch()
    kept = Path(compiler.keep_for(str(tmp_path / "kept"), str(real)))
    (kept / "kernel").touch()
    if which == "MLX":
        monkeypatch.setattr(mx, "__version__", "0.0.1")
    else:
        real.write_text("another")
    other = Path(compiler.keep_for(str(tmp_path / "kept"), str(real)))
    assert other.exists() and not kept.exists()


def test_kernels_that_nobody_asks_for_are_forgotten(compiled, tmp_path):
    folder, real = str(tmp_path / "kept"), shutil.which("g++")
    kept = Path(compiler.keep_for(folder, real))
    for name, days in (("new", compiler.FORGET_AFTER_DAYS - 1), ("old", compiler.FORGET_AFTER_DAYS + 1)):
        (kept / name).touch()
        os.utime(kept / name, times=(then := time.time() - days * 86400, then))
    compiler.keep_for(folder, real)
    assert [entry.name for entry in kept.iterdir()] == ["new"]
