"""Rows reach trackio, and its absence is said in one line. trackio itself is replaced by a recorder."""

import sys
import types
from pathlib import Path

import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.runner.tracking import open_tracker
from kssm_mlx.training.recipe import Recipe


class Recorder(types.ModuleType):
    """Stands for the module and for the run it hands out."""

    def __init__(self):
        super().__init__("trackio")
        self.started, self.rows, self.finished = None, [], False

    def init(self, **options):
        self.started = options
        return self

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


def test_numbers_of_every_row_are_sent_and_the_run_is_closed(monkeypatch):
    trackio = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    with pytest.raises(RuntimeError, match="training fell over"):
        _two_rows_and_a_fall()
    assert trackio.started["project"] == "oscillators"
    assert trackio.started["name"] == "a"
    assert trackio.started["config"]["model"]["family"] == "kssm"
    assert trackio.rows == [(3, {"train/loss": 2.5}), (4, {"eval/bits_per_byte": 3.1})]
    assert trackio.finished


def _two_rows_and_a_fall():
    with open_tracker("oscillators", Path("runs/a"), Recipe()) as log:
        log(3, {"kind": "train", "step": 3, "loss": 2.5, "note": "words are left out"})
        log(4, {"kind": "eval", "step": 4, "bits_per_byte": 3.1, "perplexity": None})
        raise RuntimeError("training fell over")


def test_without_a_project_nothing_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)  # importing it would raise
    with open_tracker(None, Path("runs/a"), Recipe()) as log:
        log(1, {"kind": "train", "step": 1, "loss": 1.0})


def test_a_missing_trackio_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with (
        pytest.raises(ConfigError, match=r"--track needs trackio; .*kssm-mlx\[track\]"),
        open_tracker("oscillators", Path("runs/a"), Recipe()),
    ):
        pass
