"""Every reader of the package on damaged and made-up files: a value or a KssmError, never anything else."""

import copy
import os
import random

import pytest

from tests.support import fuzz as fuzzing
from tests.support.fuzz import fuzz, outcomes
from tests.support.mutations import OBJECTS, mutate
from tests.support.readers import READERS

SLOW_READERS = ("BlinkDL",)  # reads and judges a whole model each time


@pytest.mark.parametrize("name", READERS)
def test_a_value_or_one_line(name, capfd):
    assert fuzz(name, 10 if name in SLOW_READERS else 60, seed=0).inputs
    capfd.readouterr()  # where the tokenizers library panics, it says so itself


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_value_or_one_line_3000_times(name, capfd):
    done = fuzz(name, 300 if name in SLOW_READERS else 3000, seed=1)
    assert done.slowest < 10
    capfd.readouterr()


def test_the_harness_fires(monkeypatch, tmp_path):
    """A reader that lets an IndexError out is found."""
    good = READERS["jsonl"]
    monkeypatch.setitem(READERS, "jsonl", good._replace(read=lambda path: path.read_bytes()[100]))
    with pytest.raises(AssertionError, match="jsonl: IndexError"):
        fuzz("jsonl", 200, seed=0)


def test_the_changes_are_many():
    rng = random.Random(0)
    good = b'{"a": [1, 2, {"b": null}], "c": "text"}'
    assert len({mutate(good, rng, text=True) for _ in range(500)}) > 300


def die(*_):
    os._exit(3)


def test_a_process_that_dies_is_a_fault(monkeypatch):
    monkeypatch.setattr(fuzzing, "fuzz", die)
    (row,) = outcomes(5, 0, ["jsonl"])
    assert row["fault"] == "jsonl: the process died"


def test_each_reader_has_a_process_and_an_outcome():
    (row,) = outcomes(20, 0, ["jsonl"])
    assert row["fault"] is None and row["inputs"] == 20 >= row["refused"] > 0


def test_memory_beyond_the_file_is_a_fault(monkeypatch):
    monkeypatch.setattr(fuzzing, "MEMORY", -(1 << 30))
    with pytest.raises(AssertionError, match=r"jsonl: .* bytes of memory"):
        fuzz("jsonl", 5, seed=0)


def test_time_beyond_the_limit_is_a_fault(monkeypatch):
    monkeypatch.setattr(fuzzing, "LONGEST", -1.0)
    with pytest.raises(AssertionError, match="s of CPU"):
        fuzz("jsonl", 5, seed=0)


def test_changes_of_trees_stay_trees():
    """A value that was put in as it is, and not as a copy, came to hold itself: within a hundred changes."""
    rng, good = random.Random(1), b'{"a": {"b": [1, {"c": {}}]}, "d": {}}'
    before = copy.deepcopy(OBJECTS)
    for _ in range(500):
        mutate(good, rng, text=True)
    assert repr(OBJECTS) == repr(before)
