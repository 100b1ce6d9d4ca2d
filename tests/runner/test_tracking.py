"""Rows reach trackio, and its absence is said in one line. trackio itself is replaced by a recorder."""

import json
import sys
import types
from pathlib import Path

import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.runner.tracking import open_tracker, require_tracker
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


def test_a_run_that_goes_on_sends_what_is_missing_and_nothing_twice(monkeypatch, tmp_path):
    """Two steps were sent, two more trained without it; the fifth is new."""
    wandb = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with open_tracker("wandb:oscillators", tmp_path, Recipe()) as log:
        for step in (1, 2):
            log(step, {"kind": "train", "step": step, "loss": 1.0})
    first = wandb.started
    rows = [{"kind": "train", "step": step, "loss": 1.0} for step in (1, 2, 3, 4)]
    rows.insert(2, {"kind": "event", "step": 2, "event": "resumed"})
    rows.insert(4, {"kind": "eval", "step": 3, "bits_per_byte": 2.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wandb.rows.clear()
    with open_tracker("wandb:oscillators", tmp_path, Recipe(), resume=True) as log:
        log(5, {"kind": "train", "step": 5, "loss": 1.0})
    assert [step for step, _ in wandb.rows] == [3, 3, 4, 5]
    assert wandb.rows[1] == (3, {"eval/bits_per_byte": 2.0})
    assert wandb.started["resume"] == "allow" and wandb.started["id"] == first["id"]


@pytest.mark.parametrize("track", ["wandv:x", "wandb:", ":x"])
def test_another_tracker_is_refused(track):
    with pytest.raises(ConfigError, match="--track takes PROJECT, trackio:PROJECT or wandb:PROJECT"):
        require_tracker(track)


def test_a_missing_wandb_is_said_with_its_own_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"--track needs wandb; .*kssm-mlx\[wandb\]"):
        require_tracker("wandb:x")


def test_a_note_that_cannot_be_read_counts_as_none(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", Recorder())
    (tmp_path / "tracking.json").write_text("[")
    with open_tracker("oscillators", tmp_path, Recipe(), resume=True) as log:
        log(1, {"kind": "train", "step": 1, "loss": 1.0})
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"trackio:oscillators": 1}
