"""C39: of eight processes exactly one gets the folder; two broken locks are caught."""

from pathlib import Path

import pytest

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.training import locks
from tests.support.check_contexts import measure


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """The racers find the package `tests`."""
    monkeypatch.chdir(Path(__file__).parents[3])


@pytest.mark.parametrize("race", range(5))
def test_one_of_eight_gets_the_lock_and_nothing_is_left(tmp_path, race):
    """Who wins is up to the scheduler, so the race is run five times."""
    check = measure("C39", Context(run_folder=tmp_path))
    assert (check.verdict, check.got) == ("pass", "1 of 8 processes got the lock")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lock, winners", [("stubborn_lock", {0}), ("hasty_lock", set(range(2, 9)))])
def test_a_broken_lock_is_caught(tmp_path, monkeypatch, lock, winners):
    monkeypatch.setattr(locks, "LOCK", f"tests.support.{lock}")
    check = measure("C39", Context(run_folder=tmp_path))
    assert check.verdict == "fail" and check.numbers["answers"].count("won") in winners
    assert "this file system may not lock files" in check.fix
