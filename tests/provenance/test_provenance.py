"""docs/provenance.md: every row is there, every place exists, every row is shown or says "not built"."""

import os
import shlex
from collections import Counter

import pytest

from kssm_mlx.checks.catalog import list_entries
from kssm_mlx.experiments.detection import report
from kssm_mlx.training.recipe import list_shipped
from tests.provenance.document import (
    DOCUMENT,
    FOLDERS,
    NOT_BUILT,
    OUTSIDE,
    ROOT,
    SHOWN,
    command,
    place,
    projects,
    render,
    sabotages,
)
from tests.support.cli_fakes import kssm
from tests.support.pytest_ids import names_a_test

# How many rows the checklists have that the project was given.
ROWS = {"phase_models": [39], "allostasis": [20], "hybrids": [38, 42, 36]}
TABLE = [row for project in projects().values() for section in project["sections"] for row in section["rows"]]
PLACES = [(row[1], place(text)) for row in TABLE for text in row[2:]]
COMMANDS = sorted({line for _, where in PLACES if (line := command(where))})
QUICK = ("kssm train failures/random-sequence", "kssm train failures/pad-scored-modular")


def named(kind):
    return {where.name for _, where in PLACES if where.kind == kind}


def test_every_row_of_every_checklist_is_there():
    counted = {name: [len(s["rows"]) for s in project["sections"]] for name, project in projects().items()}
    assert counted == ROWS


def test_boxes_and_entries_are_numbered_through():
    boxes, entries, _ = (s["rows"] for s in projects()["hybrids"]["sections"])
    assert [row[0] for row in boxes] == [str(i) for i in range(1, 39)]
    assert [row[0] for row in entries] == [f"n{i}" for i in range(1, 43)]


def test_every_row_is_shown_or_says_why_it_is_not_built():
    kinds = Counter(where.kind for _, where in PLACES)
    assert kinds.keys() == {"path", NOT_BUILT, *SHOWN}
    assert not [row for row in TABLE if not {place(text).kind for text in row[2:]} & {NOT_BUILT, *SHOWN}]


def test_no_row_is_shown_by_the_page_it_stands_on():
    assert "docs/provenance.md" not in named("path")


@pytest.mark.parametrize("kind", ["path", *FOLDERS])
def test_every_file_exists(kind):
    paths = [where.path for _, where in PLACES if where.kind == kind]
    assert paths and not [path for path in paths if not (ROOT / path).is_file()]


def test_every_test_exists():
    shown = {*named("test"), *report.OWN_TESTS.values(), *(test.strip("`") for test in OUTSIDE.values())}
    assert len(shown) > 50 and not [test for test in sorted(shown) if not names_a_test(test)]


@pytest.mark.parametrize("node", ["tests/none.py::test_x", "tests/provenance/test_provenance.py::test_none"])
def test_a_test_that_does_not_exist_is_noticed(node):
    assert not names_a_test(node)


def test_every_check_is_registered_and_fails_somewhere():
    fails = {*sabotages(), *report.OWN_TESTS, *OUTSIDE}
    assert named("check") <= list_entries().keys() & fails


def test_the_tests_of_quiet_checks_name_them():
    for id, test in report.OWN_TESTS.items():
        assert f'"{id}"' in (ROOT / test.partition("::")[0]).read_text("utf-8"), id


def test_every_recipe_can_be_named():
    assert named("recipe") <= list_shipped().keys()


@pytest.mark.parametrize(
    "line", [line if line in QUICK else pytest.param(line, marks=pytest.mark.slow) for line in COMMANDS]
)
def test_the_commands_do_what_the_page_says(line, tmp_path, monkeypatch, capsys, uncompiled):
    monkeypatch.chdir(tmp_path)
    _, *arguments = shlex.split(line)
    result = kssm(*arguments)
    assert result.exit_code == int("failures/" in line), (
        line,
        os.linesep.join(result.output.splitlines()[-5:]),
    )
    capsys.readouterr()  # a base model that is trained first says so


def test_the_document_is_up_to_date():
    assert DOCUMENT.read_text("utf-8") == render(), "run python -m tests.provenance.document"
