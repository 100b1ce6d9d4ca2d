"""What others wrote is shown with its control characters spelled out, as far as the terminal can write it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kssm_mlx.cli import app
from kssm_mlx.cli.tables import console, show, table
from kssm_mlx.terminal import printable
from tests.support import weight_files

HOSTILE = "\x1b]0;title\x07\x1b[31mred\x9b1m\x00\r\u202egpj.exe\ud800\x7f"


def test_control_characters_are_spelled_out():
    assert printable("a\x1b[31mb\tc\r\nd\re") == "a\\x1b[31mb\tc\nd\\x0de"
    assert printable("中文 naïve 👍🏽 é") == "中文 naïve 👍🏽 é"
    assert printable("\u202e\ud800") == "\\u202e\\ud800"


def is_safe(text: str) -> bool:
    unsafe = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\ud800"} - {"\n", "\t"}
    return not unsafe & set(text)


def test_tables_and_lines_of_a_console(capsys):
    screen = console()
    show(screen, table(("a", "b"), [(HOSTILE, "x")], HOSTILE))
    screen.print(HOSTILE, markup=False)
    shown = capsys.readouterr().out
    assert is_safe(shown) and shown.count("\\x1b[31mred") >= 3


def test_a_tensor_with_such_a_name(tmp_path):
    folder = weight_files.folder(tmp_path / "m", "mamba")
    tensors = weight_files.read(folder)
    tensors[HOSTILE.replace("\ud800", "")] = next(iter(tensors.values()))
    weight_files.write(folder / "model.safetensors", tensors)
    for command in (["verify-weights", "--quick", str(folder)], ["generate", str(folder), "x"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1 and "Traceback" not in result.output
        assert is_safe(result.output) and "\\x1b" in result.output


def test_a_name_with_half_a_surrogate_pair(tmp_path):
    folder = weight_files.folder(tmp_path / "m", "mamba")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"backbone.norm_f.weight"', b'"backbone.norm\\ud800ht"'))
    result = CliRunner().invoke(app, ["verify-weights", "--quick", str(folder)])
    assert result.exit_code == 1 and is_safe(result.output)


def test_an_error_message(tmp_path):
    result = CliRunner().invoke(app, ["generate", f"no-such\x1b[31m{tmp_path.name}"])
    assert result.exit_code == 2 and is_safe(result.output)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_that_cannot_show_a_character(encoding):
    """In a process of its own, whose standard output has the encoding from the start."""
    code = (
        "from kssm_mlx.terminal import prepare_streams; prepare_streams(); import sys;"
        "sys.stdout.write('naïve 中文\\n'); sys.stdout.write('東京\\n')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    expected = {"ascii": "na?ve ??\n??\n", "latin-1": "naïve ??\n??\n", "utf-8": "naïve 中文\n東京\n"}[
        encoding
    ]
    assert done.stdout.decode(encoding) == expected
    assert done.stderr.decode().count("'?' stands for characters") == (encoding != "utf-8")


def test_a_stream_that_is_a_buffer_is_left_alone(monkeypatch):
    from kssm_mlx.terminal import prepare_streams

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    prepare_streams()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_utf_8_whatever_the_terminal_shows(encoding):
    run = Path(__file__).parent / "runs" / "run-0.1.0"
    command = ["generate", str(run), "naïve 中文", "--max-tokens", "2", "--no-verify", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "kssm_mlx", *command],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    *_, last = map(json.loads, done.stdout.decode("utf-8").splitlines())
    assert last["prompt"] == "naïve 中文"
