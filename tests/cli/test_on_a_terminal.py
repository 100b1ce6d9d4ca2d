"""What `kssm train` prints on a terminal of 80 columns, counted where a person sees it: on the screen."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import kssm_mlx
from kssm_mlx.runner.evaluate import evaluate
from kssm_mlx.training.recipe import load
from tests.recipes.test_smoke import assert_it_goes_on, assert_it_was_checked

MOST_LINES, COLUMNS = 60, 80
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
REDRAWN = re.compile(r"\r\x1b\[2K|\r(?!\n)")  # what a progress bar writes before it writes its line again


def on_a_terminal(arguments: list[str], folder: Path) -> tuple[int, str]:
    """The exit code, and everything that came out of a terminal of 80 columns."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "kssm_mlx", *arguments],
        cwd=folder,
        env={k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")},
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    said = b""
    try:
        while part := os.read(main, 65536):
            said += part
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(main)
    return process.wait(), said.decode()


def screen_lines(said: str) -> int:
    """Rows of the screen; a long line takes several, one that is drawn again takes one."""
    drawn = [REDRAWN.split(line)[-1] for line in said.replace("\r\n", "\n").split("\n")]
    return sum(max(1, -(-len(ANSI.sub("", line).rstrip()) // COLUMNS)) for line in drawn[:-1])


def test_rows_of_a_screen():
    bar = "\rstep 1\r\x1b[2Kstep 2\x1b[0m\r\n"
    assert screen_lines(bar) == 1
    assert screen_lines(bar + "x" * 161 + "\r\n\r\n" + "\x1b[31m" + "x" * 80 + "\x1b[0m\r\n") == 6


def test_a_run_that_is_well_fits_on_60_lines_and_goes_on_in_another_process(tmp_path, monkeypatch, capsys):
    """Compiled, with every check, as `make run` is."""
    code, said = on_a_terminal(["train", "default", "--smoke", "--out", "run"], tmp_path)
    assert code == 0 and "validation loss" in said
    assert screen_lines(said) <= MOST_LINES, said
    recipe, folder = load("default", smoke=True), tmp_path / "run"
    assert_it_was_checked(recipe, folder)
    assert_it_goes_on(recipe, folder, monkeypatch)
    assert evaluate(kssm_mlx.load(folder), str(folder))["tokens"] >= 64
    capsys.readouterr()
