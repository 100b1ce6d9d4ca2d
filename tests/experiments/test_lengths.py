"""Accuracy over length: what a run of a task with test lengths measures, and how a report shows it."""

import io
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from rich.console import Console

from kssm_mlx.experiments.job import Job
from kssm_mlx.experiments.protocols.train import _find_longest_length
from kssm_mlx.experiments.worker import do_job
from kssm_mlx.reports.experiment import ArmSummary, Summary, plot_lengths, write_report
from kssm_mlx.training import recipe as recipes

pytestmark = pytest.mark.usefixtures("uncompiled")


def test_a_run_has_a_number_for_every_test_length(tmp_path, monkeypatch):
    monkeypatch.setattr("kssm_mlx.checks.suite.list_suite", lambda level: ())
    recipe = recipes.load("track-s3", {"train.seed": 1}, smoke=True)
    row = do_job(Job("arm", 1, recipe, "train"), tmp_path, Console(file=io.StringIO()))
    found = {name for name in row["metrics"] if name.startswith("accuracy_last@")}
    assert found == {"accuracy_last@32", "accuracy_last@1024"}
    assert row["metrics"]["longest"] in (0.0, 32.0, 1024.0)


@pytest.mark.parametrize(
    "last, longest",
    [
        ({64: 1.0, 128: 0.9, 256: 0.89}, 128),
        ({64: 1.0, 128: 0.5, 256: 1.0}, 64),  # right again by chance does not count
        ({64: 0.1, 128: 0.1}, 0),
        ({1024: 1.0, 64: 1.0}, 1024),  # in any order
    ],
)
def test_the_longest_length_is_the_last_that_is_solved(last, longest):
    metrics = {f"accuracy_last@{n}": v for n, v in last.items()} | {"accuracy_last": 0.0}
    assert _find_longest_length(metrics) == {"longest": longest}


def test_a_run_without_test_lengths_has_no_longest():
    assert _find_longest_length({"accuracy_last": 1.0, "nats_per_token": 2.0}) == {}


def test_the_report_shows_arms_over_length(tmp_path):
    nan = math.nan
    arms = [
        ArmSummary(
            "wells", {0: 1.0, 1: 0.9}, 0.95, nan, nan, 10.0, lengths={64: [1.0, 1.0], 256: [1.0, 0.9]}
        ),
        ArmSummary("none", {0: 0.2}, 0.2, nan, nan, 10.0, lengths={64: [0.5]}),
        ArmSummary("stopped", {}, nan, nan, nan, None, failed={0: "C4"}),
    ]
    summary = Summary("lengths", "", "accuracy_last@256", "", False, [], arms, [])
    paths = write_report(summary, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| arm | 64 | 256 |" in text
    assert "| wells | 1.00 (1.00-1.00) | 0.95 (0.90-1.00) |" in text
    assert "| none | 0.50 |  |" in text and "| stopped |  |  |" in text
    assert "![lengths](lengths.png)" in text
    picture = next(path for path in paths if path.name == "lengths.png")
    assert np.ptp(imread(picture)[..., :3]) > 0.5


@pytest.mark.parametrize("count, bands", [(2, 2), (10, 0)])
def test_the_spreads_of_many_arms_are_no_bands(tmp_path, monkeypatch, count, bands):
    drawn = []
    monkeypatch.setattr(Axes, "fill_between", lambda *_, **__: drawn.append("band"))
    spread = {64: [0.5, 1.0], 256: [0.4, 0.9]}
    arms = [
        ArmSummary(f"arm{i}", {0: 0.5}, 0.5, math.nan, math.nan, None, lengths=spread) for i in range(count)
    ]
    plot_lengths(Summary("lengths", "", "accuracy_last@256", "", False, [], arms, []), tmp_path / "l.png")
    assert len(drawn) == bands
