"""docs/reliability.md is what the commands measured, and what they measured is enough and without a fault."""

import copy
import re
from collections import Counter

import pytest

from tests.faults import document, measure
from tests.support.pytest_ids import names_a_test
from tests.support.readers import READERS
from tests.support.statistics_grid import STATISTICS
from tests.support.tokenizer_kinds import KINDS

INPUTS, EACH, TIMES, KILLS = 200_000, 5_000, 3_000, 100


def test_the_page_is_up_to_date():
    page = document.DOCUMENT.read_text("utf-8")
    assert page == document.render(), "run python -m tests.faults.document"


def test_every_reader_has_had_enough_and_none_a_fault():
    rows, inputs = measure.read("fuzz"), Counter()
    for row in rows:
        inputs[row["reader"]] += row["inputs"]
    assert inputs.keys() == READERS.keys() and inputs.total() >= INPUTS
    assert min(inputs.values()) >= EACH and not [row for row in rows if row["fault"]]
    assert max(row["slowest_seconds"] for row in rows) < 10


def test_the_kills_did_no_damage():
    found = measure.read("kills")
    assert found["damage"] == 0
    assert found["kills"] == sum(c["kills"] for c in found["commands"].values()) >= KILLS


def test_text_and_statistics_are_what_the_libraries_say():
    rows, numbers = measure.read("text"), measure.read("statistics")
    assert {row["kind"] for row in rows} == KINDS.keys() and {n["statistic"] for n in numbers} == {
        *STATISTICS
    }
    assert not [row for row in rows if any(row["differ"].values()) or row["times"] < TIMES]
    assert max(n["largest_relative_error"] for n in numbers) < 1e-7


def test_the_tests_that_the_page_names_exist():
    named = re.findall(r"`(tests/[\w/]+(?:\.py(?:::\w+)?)?)`", document.DOCUMENT.read_text("utf-8"))
    assert len(named) > 5
    for name in named:
        path = document.DOCUMENT.parents[1] / name.partition("::")[0]
        assert path.exists() and ("::" not in name or names_a_test(name)), name


@pytest.mark.parametrize("name", ["fuzz", "kills", "text"])
def test_a_fault_would_be_on_the_page(monkeypatch, name):
    kept = {n: measure.read(n) for n in ("fuzz", "kills", "text", "statistics")}
    worse = copy.deepcopy(kept)
    if name == "fuzz":
        worse["fuzz"][0]["fault"] = "an IndexError"
    elif name == "kills":
        worse["kills"]["damage"] = 3
    else:
        worse["text"][0]["differ"]["texts"] = 7
    monkeypatch.setattr(document, "read", worse.__getitem__)
    assert document.render() != document.DOCUMENT.read_text("utf-8")
    if name == "fuzz":
        assert ": 1 faults" in document.render() and "Fault: an IndexError" in document.render()
