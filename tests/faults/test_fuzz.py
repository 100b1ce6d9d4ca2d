"""Every reader of the package on damaged and made-up files: a value or a KssmError, never anything else."""

import pytest

from tests.support.fuzz import fuzz
from tests.support.mutations import mutate
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
    import random

    rng = random.Random(0)
    good = b'{"a": [1, 2, {"b": null}], "c": "text"}'
    assert len({mutate(good, rng, text=True) for _ in range(500)}) > 300
