"""Checks along the way: their numbers are written, drawn, stop nothing, and are the same after a resume."""

import io
import json
import shutil

import pytest
from rich.console import Console

import kssm_mlx
from kssm_mlx.errors import ConfigError
from kssm_mlx.reports.plots import plot_all
from kssm_mlx.reports.run import open_run
from kssm_mlx.training.recipe import load

pytestmark = pytest.mark.usefixtures("uncompiled")
ASKED = {"eval.checks": ["D2", "D6"], "eval.sample_tokens": 0}


def trained(folder, settings=ASKED, **options):
    recipe = load("default", settings, smoke=True)
    kssm_mlx.train(recipe, folder, console=Console(file=io.StringIO()), **options)
    return [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def few_checks(monkeypatch):
    monkeypatch.setattr("kssm_mlx.checks.suite.list_suite", lambda level: ())


def test_they_are_measured_at_evaluations_and_drawn(tmp_path):
    rows = trained(tmp_path / "run")
    assert [(row["step"], row["id"]) for row in rows] == [(s, i) for s in (4, 8) for i in ("D2", "D6")]
    assert all(row["numbers"] for row in rows)
    assert "probes.png" in [path.name for path in plot_all(open_run(tmp_path / "run"))]


def test_a_resumed_run_has_each_step_once(tmp_path):
    whole = trained(tmp_path / "run")
    last = sorted((tmp_path / "run/checkpoints").glob("step_*"))[-1]
    shutil.rmtree(last)
    assert trained(tmp_path / "run", resume=True) == whole


def test_they_may_be_asked_less_often_than_evaluations(tmp_path):
    rows = trained(tmp_path / "run", {**ASKED, "eval.checks": ["D2"], "eval.checks_every": 8})
    assert [row["step"] for row in rows] == [8]


def test_what_cannot_be_asked_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match=r"no check 'D999'"):
        trained(tmp_path / "run", {"eval.checks": ["D999"]})
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="checks_every 6 is no multiple of every 4"):
        load("default", {"eval.checks_every": 6}, smoke=True)
