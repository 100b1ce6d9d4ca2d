"""A text of one's own, in a file, in lines of JSON or in a folder: it trains after at most one message."""

import json

import pytest

from tests.support.cli_fakes import kssm
from tests.support.small_runs import sentences

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path, monkeypatch):
    """30 pieces of text, all of which end in the same paragraph."""
    monkeypatch.chdir(tmp_path)
    text, size = sentences(1200, 0), 1500
    refrain = "\n\nWhat I tell you three times is true, said the one who told it every time.\n"
    pieces = [text[i * size : (i + 1) * size] + refrain for i in range(30)]
    (tmp_path / "mine.txt").write_text("".join(pieces))
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in pieces))
    (tmp_path / "texts").mkdir()
    for i, piece in enumerate(pieces):
        (tmp_path / "texts" / f"{i:02d}.txt").write_text(piece)
    return tmp_path


@pytest.mark.parametrize("source", ["file:mine.txt", "jsonl:mine.jsonl", "dir:texts"])
def test_what_the_one_message_says_is_enough(home, source, uncompiled):
    command = ("train", "default", "--smoke", "--set", f"data.source={source}")
    first = kssm(*command, "--out", "first")
    assert first.exit_code == 1 and first.stderr.count("kssm:") == 1
    assert "What I tell you three times" in first.stderr and "data.deduplicate = true" in first.stderr
    assert '--waive C15="why this is meant"' in first.stderr
    second = kssm(*command, "--set", "data.deduplicate=true", "--out", "second")
    assert second.exit_code == 0, second.output
