"""The documentation as a site: it builds without a warning, and what Quickstart says can be typed."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest

from kssm_mlx.checks.document import list_own_entries, render_entry
from tests.docs.api import PAGE, SECTIONS, render
from tests.support.cli_fakes import kssm
from tests.support.small_runs import sentences

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.M | re.S)


@pytest.fixture(scope="module")
def on_page():
    spec = spec_from_file_location("hooks", DOCS / "_site" / "hooks.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a/b.md"))
    return lambda text: module.on_page_markdown(text, page)


@pytest.mark.parametrize(
    "text, shown",
    [
        ("[x](c.md)", "[x](c.md)"),
        ("[x](../c.md#y)", "[x](../c.md#y)"),
        ("[`x`](../../kssm_mlx/x.py)", "`x`"),
        ("[x](../../recipes/y.toml)", "`x`"),
        ("[x](results/folder)", "`x`"),
        ("[x](https://example.org/y)", "[x](https://example.org/y)"),
        ("![x](../../y.png)", "![x](../../y.png)"),
    ],
)
def test_links_out_of_the_pages_are_code(text, shown, on_page):
    assert on_page(text) == shown


def build(site: Path, root: Path = ROOT) -> subprocess.CompletedProcess:
    # Not --quiet, which hides warnings from --strict too.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_the_site_builds_and_asks_nothing_of_the_network(tmp_path):
    pytest.importorskip("mkdocs")
    made = build(tmp_path / "site")
    assert made.returncode == 0, made.stderr
    home = (tmp_path / "site/index.html").read_text()
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r"""(src|<link[^>]* href)=["']?https?:""", page.read_text()), page
        assert "```" not in page.read_text(), f"{page} has a block that is none"
    api = (tmp_path / "site/api.html").read_text()
    for groups in SECTIONS.values():
        for module, names in groups.items():
            assert all(f'id="{module}.{name}"' in api for name in names), module
    assert (tmp_path / "site/search/search_index.json").stat().st_size > 100_000
    table = (tmp_path / "site/checks.html").read_text()
    for entry in list_own_entries():
        assert f'href="checks/{entry.id}.html"' in table
        assert "How to make it fire" in (tmp_path / f"site/checks/{entry.id}.html").read_text(), entry.id
    assert "earlier tokens reach the prediction" in home


@pytest.mark.skipif(
    BROWSER is None or importlib.util.find_spec("playwright") is None,
    reason="needs a chromium and playwright: apt install chromium; pip install playwright",
)
def test_the_site_can_be_searched_from_a_folder_without_a_network(tmp_path):
    pytest.importorskip("mkdocs")
    from playwright.sync_api import sync_playwright

    assert build(tmp_path / "site").returncode == 0
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        sheet = browser.new_context(offline=True).new_page()
        asked: list[str] = []
        sheet.on("request", lambda request: asked.append(request.url))
        sheet.goto((tmp_path / "site/checks/C1.html").as_uri())
        sheet.fill("input.md-search__input", "coherence")
        sheet.wait_for_selector(".md-search-result__item")
        assert not [url for url in asked if url.startswith("http")]
        browser.close()


def test_the_page_on_python_is_up_to_date_and_tells_of_every_name():
    assert PAGE.read_text("utf-8") == (text := render()), "run python -m tests.docs.api"
    assert len(re.findall(r"^\| `\w+.*` \| \S.{15,} \|$", text, re.M)) == sum(
        len(names) for groups in SECTIONS.values() for names in groups.values()
    )


def test_a_page_of_a_check_says_what_it_is_and_what_fired_it():
    entries = {entry.id: entry for entry in list_own_entries()}
    page = render_entry(entries["C1"])
    assert page.startswith("# C1: earlier tokens reach the prediction\n")
    assert "`kssm verify RUN --only C1`" in page and "../background/k-ssm.md#no-path" in page
    assert "K-SSM v3: does" in page and "reach 0 tokens" in page  # of docs/results/detection.json
    assert "0 of " in page.partition("## False alarms")[2]
    assert "`kssm doctor`" in render_entry(entries["K1"])
    assert "`kssm verify-weights PATH`" in render_entry(entries["W1"])
    assert "What made it fire" not in render_entry(entries["G9"])


def test_a_broken_link_is_caught(tmp_path):
    pytest.importorskip("mkdocs")
    shutil.copytree(DOCS / "_site", tmp_path / "docs/_site")
    (tmp_path / "docs/index.md").write_text("[nowhere](gone.md)\n")
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text().partition("nav:")[0])
    made = build(tmp_path / "site", tmp_path)
    assert made.returncode == 1 and "gone.md" in made.stderr


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md") if p.name != "report.md"}
    assert {page for page in pages if page not in nav} == set()


@pytest.mark.slow
@pytest.mark.prints
def test_quickstart_can_be_typed(tmp_path, monkeypatch):
    """Its commands and its Python, in their order, in a folder where there is only a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/one.txt").write_text(sentences(1200, 0))
    blocks = BLOCK.findall((DOCS / "quickstart.md").read_text())
    told = [(kind, code) for kind, mark, code in blocks if "no-test" not in mark]
    assert [kind for kind, _ in told].count("python") == 1 and len(told) >= 5
    for kind, code in told:
        if kind == "python":
            exec(compile(code, "quickstart.md", "exec"), {})
            continue
        for line in code.strip().splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "kssm"
            result = kssm(*arguments)
            # Tiny runs have learned nothing, which a check may say. Nothing else may go wrong.
            assert result.exit_code == 0 or (result.exit_code == 1 and "fail" in result.output), result.output
