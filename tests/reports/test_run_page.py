"""The page of runs: what it shows is what the folder holds, and it needs nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.reports import page, write_html
from kssm_mlx.reports.curves import MOST_POINTS, draw_arms, draw_loss
from kssm_mlx.reports.page import table
from kssm_mlx.reports.run import open_run
from tests.support.cli_fakes import kssm
from tests.support.report_fakes import LADDER, validation, write_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def light(monkeypatch):
    """Without the five megabytes of Plotly."""
    import plotly.offline

    monkeypatch.setattr(plotly.offline, "get_plotlyjs", lambda: "/* Plotly */")


def charts(text: str) -> list[dict]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    return json.loads(found.group(1))


def test_every_curve_of_a_run_is_there(tmp_path, light):
    folder = write_run(tmp_path / "run")
    text = write_html([folder], folder).read_text()
    assert text.count('class="chart"') == len(charts(text))
    loss, *others = charts(text)
    curves = {curve["name"]: curve for curve in loss["data"]}
    np.testing.assert_allclose(
        curves["validation ± standard error"]["y"], [validation(s) for s in (20, 40, 60)]
    )
    for rung, nats in LADDER.items():
        assert curves[f"{rung} {nats:.3f}"]["y"] == [nats, nats]
    titles = [chart["layout"]["title"]["text"] for chart in others]
    assert "order parameter R (0 incoherent, 1 in phase)" in titles and "learning rate" in titles


def test_checks_and_samples_fold_and_what_failed_is_open(tmp_path, light):
    folder = write_run(tmp_path / "run")
    checks = json.loads((folder / "checks.json").read_text())
    checks["final"] = [{**next(iter(checks.values()))[0], "verdict": "fail"}]
    (folder / "checks.json").write_text(json.dumps(checks))
    text = write_html([folder], folder).read_text()
    assert "<details open><summary>at the end: 1 fail</summary>" in text
    assert re.search(r"<details><summary>before step 1: \d+ pass", text)
    steps = re.findall(r"<details( open)?><summary>step (\d+)</summary>", text)
    assert steps and [bool(shown) for shown, _ in steps] == [False] * (len(steps) - 1) + [True]


def test_what_a_model_writes_is_no_markup(tmp_path, light):
    folder = write_run(tmp_path / "run")
    told = "</pre><script>alert(1)</script>\x1b[2J"
    (folder / "samples.jsonl").write_text(json.dumps({"step": 20, "prompt": "", "text": told}) + "\n")
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["about"]["question"] = "<b>bold</b>?"
    (folder / "recipe.json").write_text(json.dumps(recipe))
    text = write_html([folder], folder).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text and "\x1b" not in text
    assert "&lt;b&gt;bold" in text


@pytest.mark.parametrize(
    "cell, kept",
    [("2.0401 ± 0.0196", True), ("[-0.01694, +0.003321]", True), ("1,024", True), ("5 runs", False)],
)
def test_a_number_with_its_error_stays_on_one_line(cell, kept):
    assert ("<td class=value>" in table(("x",), [(cell,)])) == kept


def test_a_label_cannot_end_the_script(light):
    chart = page.Chart([{"name": "</script><b>", "y": [1.0, float("nan")]}], {})
    text = page.document("t", [chart])
    assert charts(text)[0]["data"][0] == {"name": "</script><b>", "y": [1.0, None]}


def test_several_runs_are_arms_and_each_has_its_part(tmp_path, light):
    folders = [write_run(tmp_path / name) for name in ("a", "b")]
    text = write_html(folders, tmp_path / "both").read_text()
    assert charts(text)[0]["layout"]["title"]["text"] == "Validation"
    assert "<h2>a</h2>" in text and "<h2>b</h2>" in text and "differs in" in text
    runs = [open_run(folder) for folder in folders]
    curves = draw_arms(runs).data
    steps = curves[1]["x"]
    assert curves[0]["x"] == [*steps, *steps[::-1]] and len(curves[0]["y"]) == 2 * len(steps)


def test_a_long_run_is_thinned(tmp_path):
    folder = write_run(tmp_path / "run")
    row = {"kind": "train", "loss": 2.0, "lr": 1e-3}
    lines = "".join(json.dumps({**row, "step": step}) + "\n" for step in range(61, 5000))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(lines)
    raw = draw_loss(open_run(folder)).data[0]
    assert MOST_POINTS / 2 <= len(raw["x"]) <= MOST_POINTS and raw["x"][0] == 1


def test_the_command_writes_it_beside_the_card(tmp_path, monkeypatch, light):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "one")
    write_run(tmp_path / "two")
    done = kssm("report", "one", "--html")
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == "one/report.html"
    done = kssm("report", "one", "two", "--html")
    assert "comparison/report.html" in done.stdout and (tmp_path / "comparison/report.html").is_file()


def test_without_plotly_it_says_so_before_anything_is_written(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    done = kssm("report", folder, "--html")
    assert (
        done.exit_code == 2 and "pip install 'kssm-mlx[html]'" in done.stderr and done.stderr.count("\n") == 1
    )
    assert not (folder / "card.md").exists()
    with pytest.raises(ConfigError, match="Plotly, which is not installed"):
        write_html([folder], folder)


@pytest.mark.skipif(
    BROWSER is None or importlib.util.find_spec("playwright") is None,
    reason="needs a chromium and playwright: apt install chromium; pip install playwright",
)
@pytest.mark.parametrize("size", [(390, 844), (1280, 900)], ids=["phone", "desktop"])
def test_the_page_folds_and_hovers_in_a_browser_and_needs_no_network(tmp_path, size):
    from playwright.sync_api import sync_playwright

    folder = write_run(tmp_path / "run")
    written = write_html([folder], folder)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        sheet = browser.new_page(viewport={"width": size[0], "height": size[1]})
        said, asked = [], []
        sheet.on("console", lambda message: said.append(message.text))
        sheet.on("pageerror", lambda error: said.append(str(error)))
        sheet.on("request", lambda request: asked.append(request.url))
        sheet.goto(written.as_uri())
        sheet.wait_for_selector("#chart0 .main-svg")
        assert sheet.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
        part = sheet.locator("details", has=sheet.locator("table")).first
        opened = part.evaluate("d => d.open")
        part.locator("summary").click()
        assert part.evaluate("d => d.open") != opened
        sheet.locator("#chart0").scroll_into_view_if_needed()
        box = sheet.locator("#chart0 .nsewdrag").first.bounding_box()
        sheet.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        sheet.wait_for_selector("#chart0 .hoverlayer text")
        ink = "() => getComputedStyle(document.querySelector('#chart0 .gtitle')).fill"
        light = sheet.evaluate(ink)
        sheet.emulate_media(color_scheme="dark")
        sheet.wait_for_function(f"({ink})() !== '{light}'")
        assert sheet.pdf()[:4] == b"%PDF"
        browser.close()
    assert not said and not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
