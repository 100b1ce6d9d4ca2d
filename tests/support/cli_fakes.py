"""How these tests run a command and what they expect of a refused one."""

from typer.testing import CliRunner

from kssm_mlx.checks.core.registry import Check
from kssm_mlx.cli import app

DIGEST = "d" * 64


def kssm(*arguments):
    """The result of a command line: exit_code, stdout, stderr."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="kssm")


def refused(result, code=2):
    """The one line a refused command prints; fails if it printed anything else."""
    assert result.exit_code == code, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("kssm: ")
    return result.stderr


def a_check(id="C2", verdict="pass", fix=""):
    return Check(id, "no token sees its future", "P", verdict, "0", "0 [exactly]", fix, {}, 0.1)
