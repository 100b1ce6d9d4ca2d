"""The search for missing tests: every kind of fault is made, and what no test sees is named."""

import shutil

import pytest

from tests.support import mutants

SOURCE = """
LIMIT: int = 3

def inside(x: float, low=0) -> bool:
    \"\"\"Between low and 3.\"\"\"
    if not isinstance(x, int):
        raise TypeError(f"got {x + 1}")
    return low < x and x * 2 <= LIMIT
"""
TEST = """
from ranges import inside

def test_inside():
    assert inside(1) and not inside(0) and not inside(2)
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "ranges.py").write_text(SOURCE)
    (tmp_path / "test_ranges.py").write_text(TEST)
    return tmp_path


def test_every_kind_of_fault_is_made_and_messages_are_left_alone(tree):
    changes = [mutant.change for mutant in mutants.mutants(tree / "ranges.py")]
    assert changes == [
        "3  ->  4",
        "0  ->  1",
        "not isinstance(x, int)  ->  False",
        "not isinstance(x, int)  ->  isinstance(x, int)",
        "low < x and x * 2 <= LIMIT  ->  low < x or x * 2 <= LIMIT",
        "low < x  ->  low <= x",
        "x * 2 <= LIMIT  ->  x * 2 < LIMIT",
        "x * 2  ->  x / 2",
        "2  ->  3",
    ]


def test_folders_can_be_left_out(tree):
    (tree / "above").mkdir()
    (tree / "above" / "more.py").write_text("LIMIT = 4\n")
    every, total = mutants.sample(tree, 99, 0)
    left, fewer = mutants.sample(tree, 99, 0, ["above"])
    assert total == fewer + 1 and {mutant.path.name for mutant in every} - {m.path.name for m in left} == {
        "more.py"
    }


@pytest.mark.parametrize("waits", [True, False])
def test_tests_that_hang_have_noticed_and_a_busy_machine_has_not(waits, tree, monkeypatch):
    """Waiting is no computing, and an option that only our pytest knows is none of theirs."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "--slowest 9")
    monkeypatch.setattr(mutants, "SECONDS", 3)
    forever = "while True: pass" if not waits else "time.sleep(4)"
    (tree / "test_ranges.py").write_text(f"import time\n\ndef test_inside():\n    {forever}\n")
    assert mutants.run_tests(tree, ["test_ranges.py"]) is waits


@pytest.mark.slow
def test_what_no_test_sees_is_named(tree, tmp_path_factory):
    copied = shutil.copytree(tree, tmp_path_factory.mktemp("copy") / "tree")
    chosen, total = mutants.sample(tree, 99, seed=0)
    assert total > 9  # the test is a file as well
    chosen = [mutant for mutant in chosen if mutant.path.name == "ranges.py"]
    survivors = mutants.find_survivors(chosen, ["test_ranges.py"], copied, tree)
    assert {mutant.change for mutant in survivors} == {
        "not isinstance(x, int)  ->  False",  # nobody asks for the guard
        "x * 2 <= LIMIT  ->  x * 2 < LIMIT",  # nobody asks at the limit: 2 x is even, 3 is not
        "2  ->  3",
    }
    assert (copied / "ranges.py").read_text() == SOURCE
