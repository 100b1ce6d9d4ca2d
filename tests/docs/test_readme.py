"""README.md is short, docs/tree.md is the tree, CONTRIBUTING.md names files that exist, all pages count."""

import re
import tomllib

import pytest
import yaml

from tests.support.pages import ROOT

README = (ROOT / "README.md").read_text("utf-8")
TREE = (ROOT / "docs/tree.md").read_text("utf-8").split("# The tree\n")[1].split("\nArrows")[0]


def folders() -> set[str]:
    """Every folder that the tree draws, from the root, by its indentation."""
    found, above = set(), {}
    for line in TREE.splitlines():
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        names = re.findall(
            r"([\w-]+)/", line.split("  ")[-1] if line.strip().count("/ ") > 2 else line.strip().split(" ")[0]
        )
        for name in names:
            above[depth] = name
            found.add("/".join([above[d] for d in range(depth)] + [name]))
    return found


def test_it_is_short():
    """The long tables have pages of their own."""
    assert len(README.splitlines()) < 120


def test_every_folder_of_the_tree_exists():
    assert len(folders()) > 40 and not [f for f in sorted(folders()) if not (ROOT / f).is_dir()]


def test_every_package_is_in_the_tree():
    packages = {str(p.parent.relative_to(ROOT)) for p in (ROOT / "kssm_mlx").rglob("__init__.py")}
    assert packages <= folders()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/checks-own.md"])
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text("utf-8")
    named = set(re.findall(r"`((?:kssm_mlx|tests|docs|recipes|examples)/[\w/.-]+)`", text))
    assert named and not [name for name in sorted(named) if not (ROOT / name).exists()]


@pytest.mark.parametrize(
    "kind", ["model family", "operation", "check", "loss term", "corpus", "recipe", "command"]
)
def test_each_kind_of_addition_has_an_example(kind):
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    part = re.split(rf"^## An? {kind}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    assert "Example:" in part and "tests/" in part


def test_the_version_is_one():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"] == version


def test_the_types_of_every_folder_are_checked():
    section = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["basedpyright"]
    assert section["include"] == ["kssm_mlx"]
    assert not section.keys() & {"exclude", "ignore"}
    assert section["typeCheckingMode"] == "basic"
    assert "basedpyright" in (ROOT / "Makefile").read_text("utf-8").split("\nlint:")[1].split("\n\n")[0]


def test_hooks_before_a_commit_run_what_is_installed():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert repository["repo"] == "local" and {h["id"] for h in repository["hooks"]} >= {
        "ruff",
        "basedpyright",
    }
    assert all(h["language"] == "system" and h["entry"].startswith(".venv/bin/") for h in repository["hooks"])


def test_the_citation_is_one():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert found.keys() >= {"cff-version", "message", "title", "authors", "version", "license"}
