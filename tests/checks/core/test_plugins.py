"""A check that another package brings is run, explained, waived and documented like our own."""

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kssm_mlx.checks import document, suite
from kssm_mlx.checks.catalog import find_entry, list_entries
from kssm_mlx.checks.core import plugins
from kssm_mlx.checks.core.registry import REGISTRY, Context
from kssm_mlx.cli import app
from kssm_mlx.errors import ConfigError
from tests.support.fakes import TinyRecurrent

DOCS = Path(__file__).parents[3] / "docs" / "checks-own.md"
EXAMPLE = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S)[1]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """`installed(source)` puts a distribution with the checks of `source` where Python finds it."""

    def install(source: str) -> str:
        package, facts = tmp_path / "mypackage", tmp_path / "mypackage-1.0.dist-info"
        for folder in (package, facts):
            folder.mkdir()
        (package / "__init__.py").write_text("")
        (package / "checks.py").write_text(source)
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text("[kssm.checks]\nmine = mypackage.checks\n")
        return "MY1"

    monkeypatch.syspath_prepend(tmp_path)
    before = dict(REGISTRY)
    plugins.load.cache_clear()
    yield install
    REGISTRY.clear()
    REGISTRY.update(before)
    plugins.load.cache_clear()
    for name in ("mypackage", "mypackage.checks"):
        sys.modules.pop(name, None)


def loud(factor: float) -> Context:
    model = TinyRecurrent()
    model.head.weight = factor * model.head.weight
    return Context(model, model.args)


def test_the_example_of_the_docs_runs_with_our_own(installed):
    id = installed(EXAMPLE)
    assert id in suite.list_suite("P")
    sound, sabotaged = (suite.run_suite(loud(factor), [id])[0] for factor in (1, 1000))
    assert sound.verdict == "pass" and sound.expected == ">= 0.01 and <= 20 (warns above 5)"
    assert sabotaged.verdict == "fail" and sabotaged.fix == "scale the head"
    suite.require_known_waivers({id: "before anything else is asked"})
    (waived,) = suite.run_suite(loud(1000), [id], {id: "loud on purpose"})
    assert waived.verdict == "waived"


def test_it_is_explained_and_documented_but_not_as_ours(installed):
    id = installed(EXAMPLE)
    assert find_entry(id).package == "mypackage" and find_entry(id).cost == "1 forward pass"
    explained = CliRunner().invoke(app, ["verify", "--explain", id])
    assert "caught: our run 12" in explained.output and explained.exit_code == 0
    assert id not in {entry.id for entry in document.list_own_entries()}
    assert f"\n| {id} | P | 1 forward pass |" in document.render_table(list_entries().values())


def test_the_table_of_all_checks_is_written_where_it_is_wanted(installed, tmp_path, monkeypatch):
    id = installed(EXAMPLE)
    monkeypatch.setattr(sys, "argv", ["document", str(tmp_path / "all.md")])
    document.main()
    assert f"| {id} |" in (tmp_path / "all.md").read_text()


@pytest.mark.parametrize(
    "source, message",
    [
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        (EXAMPLE.replace("MY1", "C1"), "ValueError: two checks are called C1"),
        (EXAMPLE.replace("MY1", "mine"), "capitals and a number"),
    ],
)
def test_checks_that_cannot_be_used_are_no_silence(installed, source, message):
    installed(source)
    with pytest.raises(ConfigError, match=f"the checks of mypackage .*{message}.*pip uninstall mypackage"):
        suite.list_suite("P")


def test_the_example_is_short():
    assert len(EXAMPLE.splitlines()) <= 24
