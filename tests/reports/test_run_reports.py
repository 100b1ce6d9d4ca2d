"""What a report says is what the run folder holds; pictures show every series; nothing is half-written."""

import json
import math
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.reports import compare, comparison, report, state_claims
from kssm_mlx.reports.card import against_expected, describe_task_scores, result_rows
from kssm_mlx.reports.comparison import label_of_arm, summary_rows, varied_settings
from kssm_mlx.reports.plots import plot_dynamics, plot_loss
from kssm_mlx.reports.run import open_run
from kssm_mlx.reports.style import moving_average
from tests.support.cli_fakes import kssm, refused
from tests.support.report_fakes import LADDER, validation, write_run


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = open_run(write_run(tmp_path / "run"))
    steps, values = run.series("eval", "nats_per_token")
    assert list(steps) == [20, 40, 60]
    np.testing.assert_allclose(values, [validation(s) for s in steps])
    assert run.best["step"] == 60 and run.steps == 60
    assert run.blocks("R") == ["R_block00", "R_block01"] and run.blocks("Q") == []
    assert run.ladder == LADDER and run.measured("context_gain") == 0.81


def test_a_number_that_was_not_finite_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as f:
        f.write(json.dumps({"kind": "train", "step": 61, "loss": None}) + "\n")
        f.write(json.dumps({"kind": "eval", "step": 61, "nats_per_token": None, "se": None}) + "\n")
    run = open_run(folder)
    assert len(run.series("train", "loss")[0]) == 60 and run.best["step"] == 60
    assert report(folder)


def test_a_line_cut_by_a_crash_is_dropped_and_a_broken_one_named(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "tra')
    assert len(open_run(folder).rows) == len(whole.splitlines())
    path.write_text("junk\n" + whole)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl line 1 is not JSON"):
        open_run(folder)


def test_what_is_not_a_run_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no run folder"):
        open_run(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"it has no recipe\.json"):
        open_run(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(CheckpointError, match="stopped before its first step"):
        open_run(tmp_path)


def test_report_draws_every_picture_and_the_card(tmp_path, fine_pictures):
    folder = write_run(tmp_path / "run")
    written = report(folder)
    assert [p.name for p in written] == ["loss.png", "dynamics.png", "optimisation.png", "card.md"]
    for picture in written[:3]:
        pixels = imread(picture)
        assert pixels.shape[1] > 1000 and pixels[..., :3].std() > 0.05
    card = written[-1].read_text()
    assert card.startswith("# run\n\nDoes coupling help?\n\n## Result\n")
    for piece in (
        "loss.png",
        "712,000",
        "waived: short \\| run",
        "    The quick sample",
        "kssm train default",
    ):
        assert piece in card
    assert "an early one" not in card


def test_a_model_without_oscillators_has_no_dynamics(tmp_path):
    written = report(write_run(tmp_path / "run", oscillators=False))
    assert [p.name for p in written] == ["loss.png", "optimisation.png", "card.md"]


def test_results_carry_units_and_standard_errors(tmp_path):
    rows = dict(result_rows(open_run(write_run(tmp_path / "run"))))
    nats = validation(60)
    assert rows["validation loss, nats/token"] == f"{nats:.4f} ± 0.0100"
    assert rows["validation bits/byte"] == f"{nats / math.log(2):.4f} ± {0.01 / math.log(2):.4f}"
    assert rows["context gain, nats"] == "0.810 ± 0.020"
    assert rows["bigram of the same text, nats/token"] == "2.4500"


@pytest.mark.parametrize(
    "metric, value, says",
    [
        ("nats_per_token", 1.60, "within the tolerance"),
        ("nats_per_token", 1.50, "above"),
        ("context_gain", 0.9, "0.0900 below"),
        ("R_block01", 0.5, "reached 0.6000, 0.1000 above"),
        ("accuracy", 0.9, "not measured"),
    ],
)
def test_the_expected_number_is_compared(tmp_path, metric, value, says):
    folder = write_run(tmp_path / "run")
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["about"]["expected"] |= {"metric": metric, "value": value}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert says in against_expected(open_run(folder))
    (folder / "recipe.json").write_text(json.dumps(recipe | {"smoke": {"train": {"steps": 12}}}))
    assert against_expected(open_run(folder)).startswith("a smoke run")


def test_comparison_names_what_differs(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", kappa=0.0)
    picture, table = compare([a, b], tmp_path / "both")
    assert imread(picture)[..., :3].std() > 0.02
    text = table.read_text()
    assert "model.kappa 1.0" in text and "model.kappa 0.0" in text and "data.source" not in text
    assert f"{validation(60):.4f} ± 0.0100" in text and f"{validation(60, 0):.4f} ± 0.0100" in text
    (tmp_path / "again").symlink_to(a)
    for same in (a, tmp_path / "b" / ".." / "a", tmp_path / "again"):
        with pytest.raises(ConfigError, match="is given twice"):
            compare([b, a, same], tmp_path / "both")


def test_of_a_setting_that_a_recipe_leaves_out_its_models_value_is_named(tmp_path):
    """`default` beside `default --set model.kappa=0`: the first has kappa 1, and says so nowhere."""
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", kappa=0.0), write_run(tmp_path / "c")]
    for folder, configuration in zip(folders[::2], ({"kappa": 1.0, "d_model": 64}, {"d_model": 64})):
        recipe = json.loads((folder / "recipe.json").read_text())
        del recipe["model"]["kappa"]
        recipe["configuration"] = configuration
        (folder / "recipe.json").write_text(json.dumps(recipe))
    runs = [open_run(folder) for folder in folders]
    varied = varied_settings(runs)
    assert varied == ["model.kappa"]  # and not d_model, which no recipe states
    assert [label_of_arm([run], varied) for run in runs] == ["kappa 1.0", "kappa 0.0", "kappa unset"]
    assert [row[1] for row in summary_rows(runs)] == ["model.kappa 1.0", "model.kappa 0.0", ""]


def test_a_run_that_is_given_twice_is_refused_before_anything_is_written(tmp_path):
    run = write_run(tmp_path / "a")
    before = {path: path.read_bytes() for path in run.iterdir()}
    for second, says in ((run, "is given twice"), (tmp_path / "absent", "no run folder")):
        assert says in refused(kssm("report", run, second))
        assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_runs_of_one_name_are_called_by_more_of_their_paths(tmp_path):
    runs = [write_run(tmp_path / arm / "seed0", kappa=kappa) for arm, kappa in (("on", 1.0), ("off", 0.0))]
    text = compare(runs, tmp_path / "both")[1].read_text()
    assert "| on/seed0 |" in text and "| off/seed0 |" in text
    assert state_claims(runs)[0].startswith("off/seed0 against on/seed0, ")
    assert "| seed0 |" in compare([runs[0], write_run(tmp_path / "c")], tmp_path / "both")[1].read_text()


def test_a_picture_is_whole_or_absent(tmp_path, monkeypatch):
    run = open_run(write_run(tmp_path / "run"))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kssm_mlx.files.write_synced", full_disk)
    with pytest.raises(CheckpointError, match="no space left on device"):
        report(run.folder)
    with pytest.raises(OSError, match="No space"):
        plot_loss(run, tmp_path / "loss.png")
    assert not list(tmp_path.rglob("*.png")) and not (run.folder / "card.md").exists()


def test_smoothing_keeps_a_line_level_and_averages_noise():
    np.testing.assert_allclose(moving_average(np.full(50, 3.0), 10), 3.0)
    noise = np.random.default_rng(0).normal(size=2000)
    assert moving_average(noise, 100).std() < 0.2 < noise.std()
    assert moving_average(np.array([]), 0).size == 0


def test_an_evaluation_on_a_task_shows_what_anybody_can_reach():
    numbers = {"accuracy": 0.5, "ceiling": 0.75, "floor": 2.1914, "skill": 0.6667}
    assert [value for _, value in describe_task_scores(numbers)] == ["0.5000", "0.7500", "2.1914", "0.6667"]
    assert describe_task_scores({"accuracy": 0.5}) == []


@pytest.mark.filterwarnings("error")
def test_a_run_may_be_called_in_chinese(tmp_path, capfd):
    """Its name is in titles and legends, where the font has no such glyphs."""
    a, b = write_run(tmp_path / "运行"), write_run(tmp_path / "b", kappa=0.0)
    assert report(a) and compare([a, b], tmp_path / "both")
    assert capfd.readouterr().err == ""


def test_arms_are_bands_with_markers_of_their_own(tmp_path, monkeypatch):
    """Six runs were six hues of one marker, and the legend lay on the curves."""
    drawn = []
    monkeypatch.setattr(comparison, "picture", lambda path, size: _figure(drawn))
    runs = []
    for kappa in (1.0, 0.0):
        for seed in range(3):
            folder = write_run(tmp_path / f"{kappa}-{seed}", kappa=kappa)
            recipe = json.loads((folder / "recipe.json").read_text())
            recipe["train"]["seed"] = seed
            (folder / "recipe.json").write_text(json.dumps(recipe))
            runs.append(open_run(folder))
    comparison.plot_validation(runs, tmp_path / "x.png")
    (ax,), (legend,) = drawn[0].axes, drawn[0].legends
    arms = [line for line in ax.lines if line.get_marker() not in ("None", "", None)]
    assert (
        len(arms)
        == len({line.get_marker() for line in arms})
        == len({line.get_color() for line in arms})
        == 2
    )
    assert len(ax.collections) == 2 and ax.get_legend() is None and len(legend.get_texts()) == 3
    assert "kappa 1.0 (3 seeds)" in legend.get_texts()[0].get_text()


@pytest.mark.parametrize("setting, lines", [({}, 1), ({"context": 128}, 0), ({"tokens": 8192}, 0)])
def test_counting_on_other_tokens_is_no_line_of_all(tmp_path, monkeypatch, setting, lines):
    drawn = []
    monkeypatch.setattr(comparison, "picture", lambda path, size: _figure(drawn))
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", kappa=0.0)]
    for folder, more in zip(folders, ({}, setting), strict=True):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows = [row | {"tokens": 256, "context": 32} | more for row in rows]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison.plot_validation([open_run(folder) for folder in folders], tmp_path / "x.png")
    assert sum(line.get_label().startswith("bigram") for line in drawn[0].axes[0].lines) == lines


@contextmanager
def _figure(drawn):
    drawn.append(Figure(layout="constrained"))
    yield drawn[-1]


@pytest.mark.parametrize("blocks", [2, 6, 12])
def test_the_legend_of_the_blocks_is_beside_nothing_else(tmp_path, monkeypatch, blocks):
    folder, drawn = write_run(tmp_path / "a-run-with-a-name-of-its-own"), []
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    more = [
        row | {f"R_block{i:02d}": row["R_block00"] for i in range(blocks) if "R_block00" in row}
        for row in rows
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))

    @contextmanager
    def drawing(path, size):
        drawn.append(Figure(figsize=size, layout="constrained"))
        yield drawn[-1]

    monkeypatch.setattr("kssm_mlx.reports.plots.picture", drawing)
    plot_dynamics(open_run(folder), tmp_path / "dynamics.png")
    drawn[0].draw_without_rendering()
    (legend,) = drawn[0].legends
    assert len(legend.get_texts()) == blocks
    box, page = legend.get_window_extent(), drawn[0].bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1
    others = [drawn[0]._suptitle, *drawn[0].axes]
    assert not any(box.overlaps(other.get_tightbbox()) for other in others)


def test_half_a_surrogate_pair_in_a_recipe_is_spelled_out(tmp_path):
    """JSON can hold one, UTF-8 cannot: the card could not be written."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", kappa=0.0)
    recipe = json.loads((a / "recipe.json").read_text())
    recipe["about"]["question"] = recipe["model"]["family"] = "\ud800"
    (a / "recipe.json").write_text(json.dumps(recipe))
    report(a)
    _, table = compare([a, b], tmp_path / "both")
    assert "\\ud800" in (a / "card.md").read_text("utf-8") and "\\ud800" in table.read_text("utf-8")
