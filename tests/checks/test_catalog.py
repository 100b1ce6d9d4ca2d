"""`kssm verify --explain`: whatever id the tool prints, it can say what is measured and why."""

import json
import re
from pathlib import Path

import pytest

import kssm_mlx
from kssm_mlx.checks import document
from kssm_mlx.checks.catalog import find_entry, list_entries
from kssm_mlx.checks.core.registry import REGISTRY, Context
from kssm_mlx.checks.machine import kernels
from kssm_mlx.checks.suite import run_suite
from kssm_mlx.cli.verify import verify
from kssm_mlx.experiments.detection.matrix import count_verdicts
from kssm_mlx.weights.audit import findings
from tests.support.fakes import TinyRecurrent

PARTS = ("definition", "threshold", "caught", "sabotage")
NAMED = re.compile(r'\b(?:Check|verdict|banded|_warn_unless|_verdict)\(\s*"([A-Z]+\d+)"')


def in_the_code() -> set[str]:
    """Every id that a verdict is made with, as written in the package."""
    files = Path(kssm_mlx.__file__).parent.rglob("*.py")
    return {id for file in files for id in NAMED.findall(file.read_text("utf-8"))} - {"MY1"}


def test_every_id_that_can_be_printed_has_a_definition():
    printed = {*REGISTRY, *findings.CHECKS, *kernels.IDS.values()}
    assert len(in_the_code()) > 50
    assert printed | in_the_code() == list_entries().keys()


def test_every_definition_is_explained_on_the_screen(capsys):
    """In its four parts, under the id in capitals or not."""
    for id, entry in list_entries().items():
        verify(explain=id.lower())
        heading, *parts = capsys.readouterr().out.splitlines()
        assert heading == f"{id} {entry.title} (level {entry.level}; {entry.source})"
        assert tuple(part.partition(": ")[0] for part in parts[:4]) == PARTS, id
        assert all(part.partition(": ")[2] for part in parts) and entry.title and entry.source, id
        assert not entry.explanation["definition"].startswith(id)


@pytest.mark.parametrize("only", [["c1", " C7"], ["C1 ", "c7 "]])
def test_ids_may_be_in_small_letters_and_after_spaces(only):
    model = TinyRecurrent()
    assert [c.id for c in run_suite(Context(model, model.args), only)] == ["C1", "C7"]
    assert find_entry(" c20 ").id == "C20"


def test_false_alarms_are_counted_over_the_controls(monkeypatch, tmp_path):
    """As `detection.matrix.count_verdicts` writes them; C9 was not measurable, H1 is of the machine."""
    said = [
        {"id": id, "verdict": word, "got": ""} for id in ("C1", "C2") for word in ("pass", "fail", "warn")
    ]
    controls = {"mamba": count_verdicts(said[:4], 1), "kssm": count_verdicts(said[2:], 1)}
    (tmp_path / "detection.json").write_text(json.dumps({"controls": controls}))
    monkeypatch.setattr(document, "DETECTION", tmp_path / "detection.json")
    assert document.false_alarms() == {"C1": (1, 4), "C2": (1, 4)}
    page = document.render_table([find_entry(id) for id in ("C1", "C9", "H1")])
    assert "; 2 of 8 in all." in " ".join(page.split()) and "| source | false alarms |" in page
    assert [line.split(" | ")[-1] for line in page.splitlines()[-3:]] == ["1 of 4 |", " |", " |"]


def test_nothing_is_said_of_alarms_that_nobody_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(document, "DETECTION", tmp_path / "detection.json")
    assert document.false_alarms() == {}
    assert "false alarms" not in document.render_table([find_entry("C1")]).lower()
