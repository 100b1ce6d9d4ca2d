"""The storm itself is slow; that it sees what it looks for is not."""

import hashlib

import pytest

from tests.faults.kill_storm import COMMANDS, Damage, judge, storm


@pytest.fixture
def folders(tmp_path):
    made = tmp_path / "inputs", tmp_path / "killed"
    for folder in made:
        folder.mkdir()
        (folder / "text.txt").write_text("the text")
    return made


def say(folders) -> str:
    inputs, killed = folders
    command = next(c for c in COMMANDS if c.name == "data bpe")
    return judge(command, killed, inputs, [{"bpe.json": hashlib.sha256(b"{}").hexdigest()}])


def test_what_is_half_written_is_damage(folders):
    assert say(folders) == "absent"
    (folders[1] / "bpe.json").write_bytes(b"{}")
    assert say(folders) == "whole"
    (folders[1] / "bpe.json").write_bytes(b"{")
    with pytest.raises(Damage, match="half-written"):
        say(folders)


def test_an_input_that_has_changed_is_damage(folders):
    (folders[1] / "text.txt").write_text("the")
    with pytest.raises(Damage, match="its input has changed"):
        say(folders)


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path):
    found = storm(100, tmp_path)
    assert sum(c["kills"] for c in found["commands"].values()) == 100
