"""Accuracy over length: what the last evaluation that has it says, in the table, the card and a picture."""

import json

from matplotlib.image import imread

from kssm_mlx.reports import report
from kssm_mlx.reports.card import against_expected, result_rows
from kssm_mlx.reports.lengths import last_lengths, length_columns
from kssm_mlx.reports.run import open_run
from tests.support.report_fakes import write_run


def with_lengths(folder, *rows, context=32):
    """A run whose recipe has a context, and evaluations with more columns."""
    write_run(folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["train"]["context"] = context
    recipe["about"]["expected"] = {"metric": "accuracy_last@128", "value": 0.8, "tolerance": 0.01}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    with open(folder / "metrics.jsonl", "a") as f:
        f.writelines(
            json.dumps({"kind": "eval", "step": 61, "nats_per_token": 5.0} | row) + "\n" for row in rows
        )
    return folder


ROW = {"accuracy@128": 0.9, "accuracy_last@128": 0.7, "accuracy@64": 0.95, "accuracy_last@64": 0.85}


def test_columns_are_read_by_name_and_length():
    assert length_columns(ROW | {"accuracy": 0.5, "accuracy@8": None}) == {
        "accuracy": {64: 0.95, 128: 0.9},
        "accuracy_last": {64: 0.85, 128: 0.7},
    }


def test_the_last_evaluation_that_has_lengths_counts(tmp_path):
    run = open_run(with_lengths(tmp_path / "run", ROW, {"step": 70, "accuracy@64": 1.0}, {"step": 80}))
    assert last_lengths(run) == (70, {"accuracy": {64: 1.0}})
    assert last_lengths(open_run(write_run(tmp_path / "plain"))) == (0, {})


def test_they_are_in_the_table_the_card_and_a_picture(tmp_path):
    folder = with_lengths(tmp_path / "run", ROW)
    run = open_run(folder)
    assert ("accuracy at the last place at 64, 128 tokens", "0.850, 0.700") in result_rows(run)
    assert "reached 0.7000, 0.1000 below" in against_expected(run)
    drawn = {path.name for path in report(folder)}
    assert "lengths.png" in drawn
    assert imread(folder / "plots" / "lengths.png").std() > 0.02
    assert "accuracy at the last place at 64, 128 tokens" in (folder / "card.md").read_text()


def test_a_run_without_them_has_no_such_picture(tmp_path):
    assert "lengths.png" not in {path.name for path in report(write_run(tmp_path / "run"))}


def test_the_best_of_a_run_in_phases_is_of_the_last(tmp_path):
    rows = [{"step": s, "phase": phase, "nats_per_token": n} for s, phase, n in ((61, 1, 0.1), (62, 2, 0.9))]
    run = open_run(with_lengths(tmp_path / "run", *rows, {"step": 63, "phase": 2, "nats_per_token": 0.8}))
    assert run.best["step"] == 63
