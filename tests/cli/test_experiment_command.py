"""kssm experiment, sweep and intervene as a person types them, from a file to its report in a browser."""

import importlib.util
import json
import shutil
import sys

import pytest

from kssm_mlx.experiments.execute import Experiment
from kssm_mlx.parsing import parse_toml
from tests.support.cli_fakes import kssm, refused
from tests.support.pages import ROOT

FAKE = (sys.executable, "-m", "tests.support.fake_worker")
FILE = """
[about]
question = "Is good better?"
[run]
seeds = [0, 1, 2]
set = { "train.steps" = 4 }
[arms.good]
set = { "model.kappa" = 1.0 }
[arms.worse]
set = { "model.kappa" = 0.0 }
[[claim]]
says = "Good is better"
arm = "good"
against = "worse"
rule = "lower"
"""


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """In a folder of its own, with workers that train nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    real = Experiment.__init__
    monkeypatch.setattr(
        Experiment, "__init__", lambda self, *a, **k: real(self, *a, **{**k, "command": FAKE})
    )
    (tmp_path / "q.toml").write_text(FILE)
    return tmp_path


def test_a_question_is_asked_and_answered(faked):
    asked = kssm("experiment", "run", "q.toml")
    assert asked.exit_code == 0, asked.output
    assert "Is good better?" in asked.stdout and "6 runs, 0 of them done" in asked.stdout
    assert "Good is better (good < worse): supported. -0.0" in asked.stdout
    again = kssm("experiment", "run", "q.toml")
    assert "6 runs, 6 of them done" in again.stdout and "begins" not in again.stdout
    told = kssm("experiment", "status", "experiments/q")
    assert "good" in told.stdout and "seed 2" in told.stdout and "waiting" not in told.stdout
    reported = kssm("experiment", "report", "experiments/q/results.jsonl", "--out", "pages")
    assert reported.exit_code == 0 and (faked / "pages/report.html").is_file()
    assert (faked / "pages/report.md").read_bytes() == (faked / "experiments/q/report.md").read_bytes()


def test_part_of_it_is_told_as_part_and_resumed_without_the_file(faked):
    kssm("experiment", "run", "q.toml", "--seeds", 1)
    assert "waiting" in kssm("experiment", "status", "experiments/q").stdout
    (faked / "q.toml").unlink()
    resumed = kssm("experiment", "resume", "experiments/q")
    assert resumed.exit_code == 0 and "supported" in resumed.stdout, resumed.output


def test_report_takes_an_experiment_too(faked):
    kssm("experiment", "run", "q.toml")
    assert "report.html" in kssm("report", "experiments/q").stdout


def test_a_file_to_begin_with_is_written_once(faked):
    said = kssm("experiment", "new", "mine.toml")
    assert said.exit_code == 0 and "--smoke" in said.stdout
    assert parse_toml((faked / "mine.toml").read_text())["claim"]
    assert "mine.toml exists; choose another name" in refused(kssm("experiment", "new", "mine.toml"))


def test_those_that_come_with_the_package_are_listed():
    listed = kssm("experiment", "list").stdout
    assert "kappa" in listed and "do-r" in listed and "minutes" in listed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["experiment", "run", "kapa"],
            "no experiment 'kapa', neither a TOML file nor a shipped one; did you",
        ),
        (["experiment", "run", "q.toml", "--only", "goood"], "--only: no arm 'goood'; did you mean 'good'?"),
        (
            ["experiment", "run", "q.toml", "--seeds", "9"],
            "--seeds 9: the experiment has 3; take 1 to that many",
        ),
        (
            ["experiment", "run", "q.toml", "--set", "train.stepz=1"],
            "unknown key 'train.stepz'; did you mean",
        ),
        (["experiment", "status", "nowhere"], "nowhere is no experiment: it has no results.jsonl"),
        (["experiment", "report", "nowhere"], "nowhere is no experiment"),
        (["sweep", "default", "--grid", "train.steps"], "--grid takes SECTION.KEY=A,B,..."),
        (["sweep", "default", "--grid", "train.steps=1,"], "--grid takes SECTION.KEY=A,B,..."),
        (["sweep", "default", "--grid", "train.stepz=1,2"], "unknown key 'train.stepz'"),
        (["sweep", "default", "--grid", "train.clip=1,2", "--metric", "los"], "nobody measures 'los'"),
        (
            ["sweep", "default", "--grid", "train.clip=1", "--trials", "3"],
            "--trials takes --grid SECTION.KEY=LOW",
        ),
        (
            ["intervene", "nowhere"],
            "nowhere is no run folder; kssm intervene needs a run and its held-out text",
        ),
    ],
)
def test_what_cannot_be_done_gets_one_line(faked, arguments, message):
    assert message in refused(kssm(*arguments))


def test_a_sweep_ranks_and_gives_no_verdict(faked):
    done = kssm("sweep", "default", "--grid", "train.learning_rate=1e-3,2e-3,3e-3", "--seeds", 2)
    assert done.exit_code == 0, done.output
    assert "Best: learning_rate=" in done.stdout and "no verdict was asked for" in done.stdout
    rows = (faked / "experiments/sweep-default/results.jsonl").read_text().splitlines()
    assert len(rows) == 1 + 6


def test_a_search_needs_optuna(faked, monkeypatch):
    monkeypatch.setattr("kssm_mlx.experiments.sweep.find_spec", lambda name: None)
    said = refused(kssm("sweep", "default", "--grid", "train.clip=0.1..10", "--trials", 2))
    assert "--trials needs optuna; install it: pip install 'kssm-mlx[search]'" in said


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna: pip install optuna")
def test_a_search_goes_on_where_it_was(faked, monkeypatch):
    from kssm_mlx.experiments import sweep
    from kssm_mlx.experiments.job import Measured

    tried = []

    def fake(job, folder, options, console):
        tried.append(job.recipe.train.clip)
        return Measured({"nats_per_token": abs(job.recipe.train.clip - 1.0)})

    monkeypatch.setattr(sweep, "run", fake)
    grid = ("sweep", "default", "--grid", "train.clip=0.1..10")
    assert kssm(*grid, "--trials", 3).exit_code == 0 and len(tried) == 3
    done = kssm(*grid, "--trials", 5)
    assert len(tried) == 5 and "clip" in done.stdout, done.output


def test_a_real_one_from_end_to_end(tmp_path, monkeypatch):
    """Two arms, one seed, real workers without a compiler, and then do(R) on one of its runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    done = kssm("experiment", "run", "kappa", "--smoke", "--seeds", 1)
    assert done.exit_code == 0, done.output
    assert "undecided" in done.stdout
    page = (tmp_path / "experiments/kappa-smoke/report.md").read_text()
    assert "This is a smoke form" in page
    run = "experiments/kappa-smoke/runs/kuramoto/seed0"
    held = kssm("intervene", run, "--hold", "R=0.5", "--scored", 256, "--json")
    assert held.exit_code == 0, held.output
    assert set(json.loads(held.stdout)["R=0.5"]) == {"nats", "kl", "placebo_nats", "placebo_kl"}
    told = kssm("intervene", run, "--direction", "--scored", 256)
    assert "psi=1.6" in told.stdout and "windows of one run" in told.stdout
    assert "this model holds R, psi, output, not 'r'" in refused(kssm("intervene", run, "--hold", "r=1"))
    assert "give it, or --hold" in refused(kssm("intervene", run, "--hold", "R=1", "--direction"))
    for span in ("20:10", "5:5", "-5:", ":0"):
        assert "holds no token" in refused(kssm("intervene", run, "--tokens", span))
    assert "a window has 32; --window" in refused(kssm("intervene", run, "--tokens", "90:100"))
    circle = kssm("intervene", run, "--hold", "psi=9", "--scored", 256)
    assert float(circle.stdout.split("psi=9")[1].split()[0]) < 1e-5, circle.stdout


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(
    BROWSER is None or importlib.util.find_spec("playwright") is None,
    reason="needs a chromium and playwright: apt install chromium; pip install playwright",
)
@pytest.mark.parametrize("size", [(390, 844), (1280, 900)], ids=["phone", "desktop"])
def test_the_page_sorts_in_a_browser_and_needs_no_network(faked, size):
    from playwright.sync_api import sync_playwright

    kssm("experiment", "run", "q.toml")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((faked / "experiments/q/report.html").as_uri())
        rows = "document.querySelectorAll('table')[2].tBodies[0].rows"
        seeds = f"() => [...{rows}].map(r => r.cells[2].textContent)"
        button = page.locator("table").nth(2).locator("th button").nth(2)
        button.click()
        rising = [float(x) for x in page.evaluate(seeds)]
        button.click()
        falling = [float(x) for x in page.evaluate(seeds)]
        assert rising == sorted(rising) and falling == rising[::-1] and len(rising) == 6
        assert page.evaluate("() => [...document.images].every(i => i.naturalWidth > 0)")
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
        page.screenshot(path=faked / f"page-{size[0]}.png", full_page=True)
        browser.close()
    assert not said and not [url for url in asked if not url.startswith(("file:", "data:"))]
