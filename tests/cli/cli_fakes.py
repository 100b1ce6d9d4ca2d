"""How these tests run commands, and what stands in for the orchestration below them."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from kssm_mlx.checks.base import Check
from kssm_mlx.cli import app
from kssm_mlx.data.tokenizers import ByteTokenizer
from kssm_mlx.models.base import Trained
from tests.fakes import TinyRecurrent

DIGEST = "d" * 64


def kssm(*arguments):
    """The result of a command line: exit_code, stdout, stderr."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result, code=2):
    """The one line a refused command prints; fails if it printed anything else."""
    assert result.exit_code == code, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("kssm: ")
    return result.stderr


def a_check(id="C2", verdict="pass", fix=""):
    return Check(id, "no token sees its future", "P", verdict, "0", "0 [exactly]", fix, {}, 0.1)


@pytest.fixture
def runs(monkeypatch):
    """`experiments.run` with a tiny model and a record of what the commands asked of it."""
    trained = Trained(TinyRecurrent(256), ByteTokenizer(), "runs/tiny", DIGEST)
    asked, checks = [], [a_check()]

    def note(name, answer):
        return lambda *args, **kwargs: (asked.append((name, args, kwargs)), answer)[1]

    fake = SimpleNamespace(
        load=lambda path: trained,
        train=note("train", None),
        verify=note("verify", checks),
        asked=asked,
        checks=checks,
    )
    monkeypatch.setitem(__import__("sys").modules, "kssm_mlx.experiments.run", fake)
    return fake
