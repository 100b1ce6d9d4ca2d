"""What a check, a docstring or a page cites is in the repository, to the heading."""

import re
import subprocess

import pytest

from kssm_mlx.checks.document import list_own_entries
from tests.support.pages import CITED, LINK, PAGES, ROOT, anchor, fault

PRIVATE = re.compile(
    r"liminal\.md|groundthink\.md|perf\.md|(?<![/\['\w])(?:allostasis|mlx)\.md|reference notes", re.I
)
NOTES = re.compile(r"\bthe notes\b(?! of)(?=.*(?:ask|say|propose|never|had|have)\b)|of the notes\b", re.I)
WRITTEN = ("kssm_mlx", "recipes", "docs", "tests", "examples", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def texts(*places):
    """name -> text of what git has there, but this file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *places], cwd=ROOT, capture_output=True, check=True
    ).stdout
    names = [name for name in listed.decode().split("\0") if name.endswith((".py", ".md", ".toml"))]
    return {n: (ROOT / n).read_text("utf-8") for n in names if not n.endswith("test_sources.py")}


@pytest.mark.parametrize("entry", list_own_entries(), ids=lambda entry: entry.id)
def test_the_source_of_a_check_is_a_heading_of_a_page(entry):
    cited = CITED.findall(entry.source)
    assert cited and not [found for found in map(fault, cited) if found]
    assert ", ".join(cited) == entry.source


def test_what_the_code_cites_exists():
    cited = {
        (name, c) for name, text in texts("kssm_mlx", "tests", "recipes").items() for c in CITED.findall(text)
    }
    assert len(cited) > 50
    assert not [(name, fault(c)) for name, c in sorted(cited) if fault(c)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    inside = [t for t in LINK.findall(page.read_text("utf-8")) if "://" not in t and not t.startswith("#")]
    assert not [found for target in inside if (found := fault(target, page.parent))]


def test_nothing_cites_what_no_reader_has():
    pages = {name: text for name, text in texts(*WRITTEN).items() if not name.startswith("docs/background/")}
    assert not [(name, m.group()) for name, text in pages.items() for m in PRIVATE.finditer(text)]
    assert not [(name, m.group()) for name, text in pages.items() for m in NOTES.finditer(text)]


@pytest.mark.parametrize(
    "text", ["Source: liminal.md C2", "see mlx.md section 5", "as the notes ask", "runs of the notes"]
)
def test_such_a_citation_is_noticed(text):
    assert PRIVATE.search(text) or NOTES.search(text)


@pytest.mark.parametrize(
    "target, says",
    [("docs/background/none.md", "no such file"), ("docs/background/k-ssm.md#none", "no such heading")],
)
def test_a_citation_that_leads_nowhere_is_noticed(target, says):
    assert says in fault(target)
    assert fault("docs/background/k-ssm.md#the-lock") is None


def test_anchors_are_those_of_github():
    assert anchor("Version 1 is a bigram table") == "version-1-is-a-bigram-table"
    assert anchor("u on its floor, R·U") == "u-on-its-floor-ru"
