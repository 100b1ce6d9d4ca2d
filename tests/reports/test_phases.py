"""The pictures of a monitored run are drawn from its rows, and only for such a run."""

import json

import numpy as np
from matplotlib.image import imread

from kssm_mlx.oscillators.zones import tone
from kssm_mlx.reports import report
from kssm_mlx.reports.phases import _objective, plot_phases
from kssm_mlx.reports.run import open_run
from tests.support.report_fakes import write_run


def monitored(folder, rule=True):
    """The fake run with the columns that [monitor] and [control] add."""
    write_run(folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["monitor"] = {"profile": "A", "target": "notes", "product": [0.4, 0.6]}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "train":
            R = row["step"] / 60
            row |= {"R": R, "U": 0.5, "RU": R / 2, "tone": tone(R, "A"), "term_tonal": 0.25, "term_eos": None}
            row |= {"omega_mean": 1.0, "omega_std": 0.5 - R / 4}
            row |= {"action": "BRAKE" if R > 0.5 else "COAST"} if rule else {}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_monitored_run_gets_its_pictures(tmp_path, fine_pictures):
    for rule in (True, False):
        drawn = plot_phases(open_run_with_plots(monitored(tmp_path / f"run{rule}", rule)))
        names = ["loss_metrics.png", "phase_dynamics.png", "tone_progression.png", "frequencies.png"]
        assert [p.name for p in drawn] == names
        for picture in drawn:
            pixels = imread(picture)
            assert pixels.shape[1] > 1000 and pixels[..., :3].std() > 0.05


def open_run_with_plots(folder):
    (folder / "plots").mkdir()
    return open_run(folder)


def test_they_are_part_of_the_report_and_no_other_run_has_them(tmp_path):
    names = {p.name for p in report(monitored(tmp_path / "run"))}
    assert {"loss_metrics.png", "phase_dynamics.png", "tone_progression.png", "frequencies.png"} <= names
    assert plot_phases(open_run(write_run(tmp_path / "other"))) == []


def test_the_objective_is_cross_entropy_and_terms(tmp_path):
    run = open_run(monitored(tmp_path / "run"))
    np.testing.assert_allclose(_objective(run), run.series("train", "loss")[1] + 0.25)
