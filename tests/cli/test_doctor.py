"""`kssm doctor` shows the facts and the verdicts, and its exit code tells whether numbers are right here."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
import typer
from typer.testing import CliRunner

from kssm_mlx.cli.doctor import doctor
from kssm_mlx.ops import dispatch, verdicts


@pytest.fixture(scope="module")
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(doctor)
    return app


@pytest.fixture(autouse=True)
def one_kernel(monkeypatch, tmp_path):
    """tests/checks/machine/test_kernels.py looks at all of them; verdicts are not for the user's folder."""
    monkeypatch.setattr(verdicts, "_record", lambda: tmp_path / "kernels.json")
    monkeypatch.setattr(dispatch, "OPS", ("conv",))


def test_doctor_json(command):
    result = CliRunner().invoke(command, ["--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert told["facts"]["packages"]["mlx"] == mx.__version__
    assert {c["id"] for c in told["checks"]} == {*(f"H{i}" for i in range(1, 7)), "K6"}
    assert told["measured"]["gemm_gflops"] > 0


def test_doctor_says_what_is_broken(command, monkeypatch):
    monkeypatch.setattr(mx, "matmul", lambda a, b: mx.zeros((a.shape[0], b.shape[1])))
    result = CliRunner().invoke(command)
    assert result.exit_code == 1
    assert "broken" in result.stdout
    assert "H1 matrix product: matrix products are wrong" in result.stdout
