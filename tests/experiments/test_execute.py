"""An experiment goes on from whatever is left of it, and its results are the same."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.experiments.design import list_experiments, parse_design
from kssm_mlx.experiments.execute import Experiment, design_of, spent_seconds
from kssm_mlx.experiments.schedule import list_jobs, require_runnable
from kssm_mlx.experiments.summary import summarize
from kssm_mlx.reports.experiment import write_report
from kssm_mlx.runs import lock
from kssm_mlx.runs.experiment import read_results
from tests.support.pages import ROOT

FAKE = (sys.executable, "-m", "tests.support.fake_worker")


class Quiet:
    """Notes what it hears."""

    def __init__(self):
        self.ends, self.begins = [], []

    def planned(self, jobs): ...
    def tick(self): ...

    def began(self, job):
        self.begins.append((job.arm, job.seed))

    def ended(self, job, row, seconds, why):
        self.ends.append((job.arm, job.seed, why))


def table(arms=("good", "worse"), seeds=3, **sections):
    claim = [{"arm": arms[0], "against": arms[1], "rule": "lower"}] if len(arms) > 1 else []
    run = {"seeds": list(range(seeds)), "set": {"train.steps": 4}}
    return {
        "run": run,
        "arms": {name: {"set": {"data.validation": 0.1 + i / 100}} for i, name in enumerate(arms)},
        "claim": claim,
        **sections,
    }


@pytest.fixture
def begin(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def begin(tables=None, folder="e", workers=2, **options) -> Experiment:
        design = parse_design(tables or table())
        return Experiment(tmp_path / folder, design, "q", "text", workers=workers, command=FAKE, **options)

    return begin


def test_all_runs_are_done_once_and_in_order(begin):
    watch, again = Quiet(), Quiet()
    results = begin().run(watch)
    assert [(r.seed, r.arm) for r in results.runs] == [(s, a) for s in range(3) for a in ("good", "worse")]
    assert len(watch.ends) == 6
    text = (begin().folder / "results.jsonl").read_text()
    begin().run(again)
    assert not again.ends and (begin().folder / "results.jsonl").read_text() == text
    assert spent_seconds(begin().folder) > 0


def test_only_and_seeds_leave_the_rest_for_later(begin):
    watch = Quiet()
    begin().run(watch, only=["good"], seeds=2)
    assert sorted(watch.ends) == [("good", 0, ""), ("good", 1, "")]
    results = begin().run(Quiet())
    assert len(results.runs) == 6 and len(results.designs) == 1


def test_a_failed_check_and_a_crash_stop_one_run_and_not_the_others(begin):
    watch = Quiet()
    results = begin(table(("good", "failing", "crashing"), 1, claim=[])).run(watch)
    assert {r.arm: r.failed[:2] for r in results.runs} == {"good": "", "failing": "C4"}
    why = {arm: why for arm, _, why in watch.ends}
    assert "it ended with code 3: no space left on device" in why["crashing"]
    again = Quiet()
    begin(table(("good", "failing", "crashing"), 1, claim=[])).run(again)
    assert [arm for arm, *_ in again.ends] == ["crashing"]  # what said nothing about the arm is tried again


def test_a_planned_look_ends_it_early(begin):
    watch = Quiet()
    begin(table(seeds=6, stop={"looks": [3, 6]})).run(watch)
    assert {seed for _, seed, _ in watch.ends} == {0, 1, 2}


def test_a_look_sees_runs_that_were_not_seen_to_end(begin):
    """A process writes its part before it ends, and may be waited for at that moment."""
    experiment = begin(table(seeds=6, stop={"looks": [3, 6]}))
    experiment.run(Quiet(), seeds=3)
    file = experiment.folder / "results.jsonl"
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:-2]))
    designs, jobs = (
        read_results(experiment.folder).designs,
        list_jobs(experiment.design, require_runnable(experiment.design)),
    )
    fourth = next(job for job in jobs if job.seed == 3)
    assert not experiment._may_begin(fourth, jobs, lambda: experiment._write(designs, jobs))
    assert file.read_text() == whole


def test_no_run_begins_beyond_the_budget(begin):
    watch = Quiet()
    begin(table(seeds=6, stop={"minutes": 1e-9}), workers=1).run(watch)
    assert len(watch.ends) == 1


def test_a_changed_rule_is_noted_with_what_was_done_before(begin):
    begin().run(Quiet(), seeds=1)
    changed = table(claim=[{"arm": "good", "against": "worse", "rule": "equal"}])
    results = begin(changed).run(Quiet())
    assert [d["runs_before"] for d in results.designs] == [0, 2]
    assert any("CHANGED" in line and "after 2 runs" in line for line in summarize(begin().folder).fixed)
    assert design_of(results).claim[0].rule == "equal"


def test_runs_that_were_trained_before_the_rule_was_written_down_are_told(begin):
    run = begin().folder / "runs/good/seed0"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text("{}")
    results = begin().run(Quiet())
    assert results.designs[0]["runs_before"] == 1
    (line,) = summarize(begin().folder).fixed
    assert "when 1 trained runs lay in its folder ALREADY" in line and "before the first run" not in line


def test_a_results_file_alone_is_gone_on_with(begin):
    """A copy out of a repository, without parts and runs; a part that was deleted is done again."""
    begin().run(Quiet(), seeds=1)
    copy = begin(folder="copy")
    copy.folder.mkdir()
    shutil.copy(begin().folder / "results.jsonl", copy.folder)
    watch = Quiet()
    results = copy.run(watch)
    assert sorted(watch.begins) == [(arm, seed) for arm in ("good", "worse") for seed in (1, 2)]
    begin().run(Quiet())
    assert results == read_results(begin().folder)
    (copy.folder / "parts/good/seed0.json").unlink()
    again = Quiet()
    copy.run(again)
    assert again.begins == [("good", 0)]


def test_a_result_of_other_settings_is_refused(begin):
    begin().run(Quiet(), seeds=1)
    other = table()
    other["run"]["set"] = {"train.steps": 5}
    with pytest.raises(
        CheckpointError, match=r"is of a run with other settings: recipe.train.steps was 4, is now 5"
    ):
        begin(other).run(Quiet())


@pytest.mark.parametrize(
    "change",
    [
        # A new key of recipes has a default that means what there was.
        lambda settings: settings["train"].pop("optimizer"),
        # The recipe has learned since how long it takes.
        lambda settings: settings["about"].update(minutes=77.0),
    ],
    ids=["a key is new", "it says something else of itself"],
)
def test_a_recipe_that_computes_the_same_does_not_make_old_runs_others(change, begin):
    begin().run(Quiet(), seeds=1)
    part = begin().folder / "parts/good/seed0.json"
    row = json.loads(part.read_text())
    change(row["settings"])
    part.write_text(json.dumps(row))
    watch = Quiet()
    begin().run(watch)
    assert ("good", 0) not in watch.begins


def test_another_experiment_or_a_second_process_is_kept_out(begin):
    began = begin()
    began.run(Quiet(), seeds=1)
    other = Experiment(began.folder, parse_design(table(seeds=2)), "other", "", command=FAKE)
    with pytest.raises(CheckpointError, match=r"holds experiment 'q', not 'other'; choose another --out"):
        other.run(Quiet())
    with lock.hold(began.folder / "elsewhere"):
        assert lock.is_held(began.folder / "elsewhere")
    assert not lock.is_held(began.folder / "elsewhere")


def test_a_damaged_part_is_named(begin):
    begin().run(Quiet(), seeds=1)
    (begin().folder / "parts/good/seed0.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"seed0\.json is not JSON: .*; delete it and the run is done again"
    ):
        begin().run(Quiet())


def test_selections_come_first_and_choose(begin):
    select = {"grid": {"train.learning_rate": [1e-3, 2e-3]}, "seed": 9}
    watch = Quiet()
    results = begin(table(seeds=1, select=select)).run(watch)
    assert [r.purpose for r in results.runs] == ["select"] * 4 + ["run"] * 2
    summary = summarize(begin().folder)
    assert set(summary.chosen) == {"good", "worse"}
    assert all(r.settings["train"]["learning_rate"] in (1e-3, 2e-3) for r in results.chosen)


CODE = """
import sys
from pathlib import Path
from kssm_mlx.experiments.design import list_experiments, parse_design
from kssm_mlx.experiments.execute import Experiment
from tests.experiments.test_execute import FAKE, Quiet, table
design = parse_design(table(("slow", "slow worse"), 2))
Experiment(Path(sys.argv[1]), design, "q", "text", command=FAKE).run(Quiet())
"""


def start(folder: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder)], env=env, start_new_session=True, stderr=subprocess.DEVNULL
    )


def rows(folder: Path) -> list[dict]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "fixed"} for line in lines]


def test_an_experiment_that_is_killed_again_and_again_ends_with_the_same_results(tmp_path):
    assert start(tmp_path / "whole").wait() == 0
    folder = tmp_path / "killed"
    for _ in range(3):
        process = start(folder)
        end = time.monotonic() + 60
        before = len(list(folder.glob("parts/*/*.json")))
        while (
            process.poll() is None
            and len(list(folder.glob("parts/*/*.json"))) == before
            and time.monotonic() < end
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(folder).wait() == 0
    assert rows(folder) == rows(tmp_path / "whole")


def test_a_signal_ends_it_with_a_line_and_it_goes_on(tmp_path):
    process = start(tmp_path / "e")
    while not list((tmp_path / "e").glob("runs/*/*.log")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert not lock.is_held(tmp_path / "e")
    assert start(tmp_path / "e").wait() == 0 and len(read_results(tmp_path / "e").runs) == 4


def test_a_report_is_made_of_the_results_alone_and_always_the_same(begin, tmp_path):
    begin(table(("good", "worse", "failing"), claim=table()["claim"])).run(Quiet())
    moved = tmp_path / "moved" / "results.jsonl"
    moved.parent.mkdir()
    moved.write_bytes((begin().folder / "results.jsonl").read_bytes())
    first = [path.read_bytes() for path in write_report(summarize(moved), tmp_path / "one")]
    second = [path.read_bytes() for path in write_report(summarize(begin().folder), tmp_path / "two")]
    assert first == second
    page = (tmp_path / "one/report.md").read_text()
    assert "| good < worse | supported |" in page and "stopped: C4 gradients" in page
    assert "were fixed on" in page and "before the first run" in page
    html = (tmp_path / "one/report.html").read_text()
    assert "http" not in html.replace("http-equiv", "") and html.count("data:image/png") == 2


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2 is not JSON"),
        ('{"kind": "other"}', 'line 2 is no row of kind "design" or "run"'),
        ('{"kind": "run", "arm": "a"}', "line 2: seed should be a int, got None"),
        ('{"kind": "run", "arm": "a", "seed": 0, "metrics": {"x": "1"}}', "line 2: a metric is no number"),
        ('{"kind": "run", "arm": "a", "seed": 0, "units": []}', "line 2: units should be an object"),
    ],
)
def test_a_damaged_results_file_is_named(tmp_path, line, message):
    design = {"kind": "design", "digest": "d", "fixed": "t", "name": "q", "file": ""}
    (tmp_path / "results.jsonl").write_text(f"{json.dumps(design)}\n{line}\n")
    with pytest.raises(CheckpointError, match=message):
        read_results(tmp_path)


def test_results_without_a_design_are_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"has no row of kind design"):
        read_results(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot read"):
        read_results(tmp_path / "nothing")
    row = {"kind": "design", "digest": "d", "fixed": "t", "name": "q", "file": ""}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=r"the results hold no design"):
        design_of(read_results(tmp_path))


@pytest.mark.slow
def test_a_real_one_that_is_killed_at_ten_random_moments(tmp_path):
    """Real runs of the smallest experiment, whole and killed: the same results, but the date."""
    command = [sys.executable, "-m", "kssm_mlx", "experiment", "run", "kappa", "--smoke", "--out"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_DISABLE_COMPILE": "1"}

    def begin_real(name: str) -> subprocess.Popen:
        return subprocess.Popen([*command, name], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    assert begin_real("whole").wait() == 0
    took, moments = time.monotonic() - began, random.Random(0)
    for _ in range(10):
        process = begin_real("killed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.1, 0.6) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert begin_real("killed").wait() == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", list_experiments())
def test_the_smoke_form_of_every_shipped_experiment_runs(name, tmp_path):
    """With one seed, real workers, uncompiled: every run ends with a number, and the report is written."""
    command = [sys.executable, "-m", "kssm_mlx", "experiment", "run", name, "--smoke", "--seeds", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_DISABLE_COMPILE": "1"}
    done = subprocess.run([*command, "--out", "e"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = read_results(tmp_path / "e").runs
    assert runs and not [run.failed for run in runs if run.failed]
    assert all(run.metrics for run in runs) and (tmp_path / "e/report.html").is_file()
