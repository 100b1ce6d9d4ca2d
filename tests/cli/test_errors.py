"""Every error made on purpose is one line and its exit code, from one place; a bug keeps its traceback."""

import errno

import pytest

from kssm_mlx import cli
from kssm_mlx.errors import CheckFailed, ConfigError, DataError, Interrupted, WeightMismatch
from tests.support.cli_fakes import kssm, refused


def raising(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("kssm_mlx.training.recipe.list_shipped", fail)


@pytest.mark.parametrize(
    "error, code",
    [(ConfigError, 2), (DataError, 2), (CheckFailed, 1), (WeightMismatch, 1), (Interrupted, 130)],
)
def test_a_named_error_is_one_line_with_its_code(monkeypatch, error, code):
    raising(monkeypatch, error("first\n  second"))
    assert refused(kssm("recipes"), code) == "kssm: first second\n"


def test_an_interrupt_is_130(monkeypatch):
    raising(monkeypatch, KeyboardInterrupt())
    assert refused(kssm("recipes"), 130) == "kssm: interrupted\n"


@pytest.mark.parametrize("number", cli.DISK)
def test_what_a_disk_does_is_one_line(monkeypatch, number):
    raising(monkeypatch, OSError(number, "No Space", "runs/a"))
    assert refused(kssm("recipes")) == "kssm: runs/a: no space\n"


@pytest.mark.parametrize("bug", [ValueError("a bug"), OSError(errno.EBADF, "a bug")])
def test_a_bug_keeps_its_traceback(monkeypatch, bug):
    raising(monkeypatch, bug)
    result = kssm("recipes")
    assert result.exception is bug and "kssm:" not in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["fly"], "no such command 'fly'; see kssm --help"),
        (["train"], "which recipe? kssm train default trains the shipped one"),
        (["generate", "m", "--top-k", "many"], "invalid value for '--top-k'"),
        (["report", "--no"], "no such option: --no"),
    ],
)
def test_a_wrong_command_line_is_2(arguments, message):
    assert message in refused(kssm(*arguments)).replace("'RECIPE'", "'recipe'")
