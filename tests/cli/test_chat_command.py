"""`kssm chat`: lines become turns and commands, errors end a pipe and not a person's session."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kssm_mlx._caches import private_folder
from kssm_mlx.cli import app
from kssm_mlx.cli.live.chat import COMMANDS, HELP, Dropped, _ask, turns
from tests.support.cli_fakes import kssm

pytestmark = pytest.mark.usefixtures("uncompiled")
OLD = Path(__file__).parents[1] / "runs" / "run-0.1.0"


def chat(*lines, options=()):
    said = "".join(f"{line}\n" for line in lines)
    return CliRunner().invoke(app, ["chat", "m", "--max-tokens", "5", *map(str, options)], input=said)


def split(*lines):
    given = iter(lines)

    def read(prompt):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    return list(turns(read))


def test_lines_become_turns():
    assert split("a", "", "b") == ["a", "", "b"]
    assert split("a\\", "b", "c") == ["a\nb", "c"] and split("a\\") == ["a"]
    assert split('"""', "a", " b\\", '"""', "c") == ["a\n b\\", "c"]
    assert split('"""a"""', '"""b', 'c"""') == ["a", "b\nc"] and split('"""a') == ["a"]


def test_ctrl_c_at_the_prompt_drops_what_was_typed(monkeypatch):
    given = iter(["a\\", Dropped, "b", EOFError])

    def read(prompt):
        line = next(given)
        if isinstance(line, str):
            return line
        raise line

    assert list(turns(read)) == ["b"]

    def interrupted(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(Dropped):
        _ask("> ")
    with pytest.raises(KeyboardInterrupt):  # from a pipe it ends the command
        list(turns(interrupted))


def test_the_state_is_kept_and_gone_on_from(runs, tmp_path):
    file = tmp_path / "talk"
    whole = chat("one", "two").output
    first = chat("one", options=["--state", file]).output
    assert first + chat("two", options=["--state", file]).output == whole
    assert chat("one", f"/save {file}", "/reset", f"/load {file}", "two").output == whole
    assert chat("one", "/reset", "one").output == first * 2


def test_seed_temperature_and_a_slash(runs):
    assert chat("one", "/seed 3", "two").output != chat("one", "two").output
    assert chat("/seed 3", "one").output == chat("one", options=["--seed", 3]).output
    assert chat("/temp 0", "one").output == chat("one", options=["--temp", 0]).output
    assert chat("//help").exit_code == 0 and "/reset" not in chat("//help").output
    assert chat("/help").output == HELP + "\n" and all(f"/{name}" in HELP for name in COMMANDS)
    assert chat("/quit", "one").output == "" == chat("", "  ").output


@pytest.mark.parametrize(
    "line, says",
    [
        ("/sead 3", "no command /sead; did you mean 'seed'?"),
        ("/", "no command /;"),
        ("/seed", "/seed needs a value"),
        ("/reset all", "/reset takes nothing"),
        ("/seed -1", "whole number"),
        ("/temp warm", "neither a number nor R"),
        ("/temp -1", "temperature is -1"),
        ("/save x", "nothing was said yet"),
        ("/load absent", "no state file absent; /save absent writes one"),
    ],
)
def test_a_command_that_cannot_be_ends_a_pipe_with_one_line(runs, line, says):
    done = chat("one", line) if line != "/save x" else chat(line)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture
def of_other_weights(runs, tmp_path):
    """A state file that other weights wrote."""
    from kssm_mlx.generation import load_state, save_state
    from tests.support.cli_fakes import DIGEST

    assert chat("one", options=["--state", tmp_path / "talk"]).exit_code == 0
    save_state(tmp_path / "talk", load_state(tmp_path / "talk", DIGEST), "0" * 64)
    return tmp_path / "talk"


def test_errors_speak_of_the_command_that_was_given(of_other_weights):
    file = of_other_weights
    assert f"start a new one without --state {file}" in chat("two", options=["--state", file]).stderr
    assert "start a new one with /reset" in chat("one", f"/load {file}").stderr
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    said = chat("one", f"/load {file}").stderr
    assert "--state" not in said and "/save" in said


@pytest.mark.parametrize("given, place", [(b"abc\xff\n", 3), (b"one\n\xe4\n", 4), (b"one\\\n\xff", 5)])
def test_input_that_is_no_text_is_named_by_its_byte(runs, given, place):
    done = CliRunner().invoke(app, ["chat", "m", "--max-tokens", "2"], input=given)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert f"standard input is not UTF-8: byte {place} is 0x" in done.stderr


def test_what_was_said_before_an_error_is_kept(runs, tmp_path):
    assert chat("one", "/nope", options=["--state", tmp_path / "s"]).exit_code == 2
    assert (tmp_path / "s").is_file()
    (tmp_path / "t").write_text("mine")
    assert "is no state file" in chat("one", options=["--state", tmp_path / "t"]).stderr
    assert "is no state file" in chat("one", f"/save {tmp_path / 't'}").stderr
    assert (tmp_path / "t").read_text() == "mine"


def test_on_a_terminal_an_error_is_told_and_lines_are_remembered(tmp_path):
    main, side = pty.openpty()
    # A home of its own for what it remembers, with the libraries that are built already.
    own = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(private_folder().parent), "TERM": "dumb"}
    environment = {**os.environ, **own, "PYTHONPATH": str(OLD.parents[2])}
    command = [sys.executable, "-m", "kssm_mlx", "chat", str(OLD), "--max-tokens", "3"]
    process = subprocess.Popen(command, env=environment, stdin=side, stdout=side, stderr=side)
    os.close(side)
    os.write(main, b"/nope\nthe \n/quit\n")
    said = b""
    try:
        while part := os.read(main, 65536):
            said += part
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(main)
    assert process.wait() == 0 and b"no command /nope" in said and b"Traceback" not in said
    kept = [path.read_text() for path in tmp_path.rglob("chat-history")]
    assert len(kept) == 1 and "the " in kept[0]


def test_help_is_there():
    assert "--state" in kssm("chat", "-h").output
