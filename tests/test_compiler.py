"""The compiler of the tests: what it made of one text it does not make twice."""

import subprocess

import pytest

from tests.support.compiler import main

pytestmark = pytest.mark.linux
ONE, TWO = 'extern "C" int f() { return 1; }\n', 'extern "C" int f() { return 2; }\n'


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """compile(folder, text, option) -> (exit code, bytes), and how often the real one ran."""
    import shutil

    real, runs = shutil.which("g++"), []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: runs.append(a) or run(*a, **k))
    (tmp_path / "cache").mkdir()

    def compile(folder: str, text: str, option: str = "-O1"):
        at = tmp_path / folder
        at.mkdir(exist_ok=True)
        (at / "f.cpp").write_text(text)
        code = main(
            real,
            str(tmp_path / "cache"),
            [option, "-shared", "-fPIC", str(at / "f.cpp"), "-o", str(at / "f.so")],
        )
        return code, (at / "f.so").read_bytes() if code == 0 else b""

    return compile, runs


def test_one_text_is_compiled_once_wherever_it_lies(compiled):
    compile, runs = compiled
    assert compile("a", ONE) == compile("b", ONE)
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
