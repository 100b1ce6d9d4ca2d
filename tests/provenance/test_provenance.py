"""docs/provenance.md: every row of the checklists is there, and every place exists."""

from collections import Counter

import pytest

from kssm_mlx.checks.catalog import list_entries
from kssm_mlx.training.recipe import list_shipped
from tests.provenance.document import DOCUMENT, FOLDERS, NOT_BUILT, ROOT, notes, place, render

# How many rows the checklists have that the project was given.
ROWS = {"liminal": [39], "allostasis": [20], "groundthink": [38, 42, 36]}
PLACES = [
    (note, row[1], place(text))
    for note, table in notes().items()
    for section in table["sections"]
    for row in section["rows"]
    for text in row[2:]
]


def test_every_row_of_every_checklist_is_there():
    counted = {note: [len(s["rows"]) for s in table["sections"]] for note, table in notes().items()}
    assert counted == ROWS


def test_boxes_and_entries_are_numbered_through():
    boxes, entries, _ = (s["rows"] for s in notes()["groundthink"]["sections"])
    assert [row[0] for row in boxes] == [str(i) for i in range(1, 39)]
    assert [row[0] for row in entries] == [f"n{i}" for i in range(1, 43)]


def test_every_row_says_where_or_why_not():
    rows = [row for table in notes().values() for s in table["sections"] for row in s["rows"]]
    assert all(len(row) >= 3 for row in rows)
    kinds = Counter(where.kind for _, _, where in PLACES)
    assert kinds.keys() == {"path", "check", NOT_BUILT, *FOLDERS}


@pytest.mark.parametrize("kind", ["path", *FOLDERS])
def test_every_file_exists(kind):
    paths = [where.path for _, _, where in PLACES if where.kind == kind]
    assert not [path for path in paths if not (ROOT / path).is_file()]


def test_every_check_is_registered():
    known = list_entries()
    assert not [where.name for _, _, where in PLACES if where.kind == "check" and where.name not in known]


def test_every_recipe_can_be_named():
    assert {where.name for _, _, where in PLACES if where.kind == "recipe"} <= list_shipped().keys()


def test_the_document_is_up_to_date():
    assert DOCUMENT.read_text("utf-8") == render(), "run python -m tests.provenance.document"
