"""Numbers in several files are read as the one array that they are, and in bounded memory."""

import subprocess
import sys

import numpy as np
import pytest

from kssm_mlx.data import passages, shards
from kssm_mlx.data.passages import hash_passages, shared_passages
from kssm_mlx.data.shards import Growing, Shards, read_blocks, write_numbers


@pytest.fixture
def both():
    whole = np.random.default_rng(0).integers(0, 1000, 103).astype(np.uint16)
    return whole, Shards(np.split(whole, [1, 40, 40, 90]))


@pytest.mark.parametrize(
    "key",
    [
        slice(None), slice(0, 0), slice(0, 41), slice(39, 95), slice(-5, None), slice(90, 200),
        slice(3, 99, 7), slice(None, None, -1), 0, 40, -1, np.array([[0, 39], [40, 102]]),
        np.array([], np.int64), [5, -1],
        np.arange(103) % 3 == 0,
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_taken_is_what_the_array_gives(key, both):
    whole, cut = both
    np.testing.assert_array_equal(cut[key], whole[key])
    assert np.asarray(cut[key]).dtype == whole.dtype and len(cut) == cut.size == 103
    np.testing.assert_array_equal(np.asarray(cut), whole)


@pytest.mark.parametrize("key", [103, -104, [0, 500]])
def test_beyond_the_end_is_nothing(key, both):
    with pytest.raises(IndexError, match="is not among 103"):
        both[1][key]


@pytest.mark.parametrize("size, overlap", [(1, 0), (10, 3), (103, 0), (500, 63), (100, 63)])
def test_blocks_are_all_of_it(size, overlap, both):
    whole = both[0]
    for ids in both:
        blocks = list(read_blocks(ids, size, overlap))
        runs = np.concatenate([np.lib.stride_tricks.sliding_window_view(b, overlap + 1) for b in blocks])
        np.testing.assert_array_equal(runs, np.lib.stride_tricks.sliding_window_view(whole, overlap + 1))


@pytest.mark.parametrize("most", [1, 7, 50, 103, 1000])
def test_what_grows_is_what_is_written_at_once(most, monkeypatch, tmp_path):
    """Also behind a place where it stopped, with more on the disk than was said to be."""
    monkeypatch.setattr(shards, "MOST", most)
    whole = np.arange(103).astype(np.uint16)
    (tmp_path / "at-once").mkdir()
    write_numbers(tmp_path / "at-once", "train.bin", whole, whole.dtype)
    first = Growing(tmp_path / "work", "train.bin", whole.dtype)
    for part in np.split(whole[:80], [3, 3, 50]):
        first.append(part)
    first.close()
    for kept in (0, 1, 49, 50, 80):
        again = Growing(tmp_path / "work", "train.bin", whole.dtype, kept)
        again.append(whole[kept:])
        again.close()
        np.testing.assert_array_equal(again.read()[:], whole)
    with pytest.raises(OSError, match=r"is shorter than|No such file"):
        Growing(tmp_path / "work", "train.bin", whole.dtype, 104)
    (tmp_path / "grown").mkdir()
    (tmp_path / "grown" / "train.0099.bin").write_text("of before")
    again.move(tmp_path / "grown")
    grown, at_once = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("grown", "at-once")
    )
    assert grown == at_once and len(grown) == -(-103 // most)


@pytest.mark.parametrize("looked_up", [10, 1 << 20])
def test_shared_passages_are_those_of_sets(looked_up, monkeypatch):
    monkeypatch.setattr(passages, "LOOKED_UP", looked_up)
    monkeypatch.setattr(shards, "BLOCK", 50)
    rng = np.random.default_rng(1)
    train, validation = rng.integers(0, 9, 400), rng.integers(0, 9, 200)
    validation[30:50], validation[100:108] = train[45:65], train[:8]
    runs = [{tuple(side[i : i + 8]) for i in range(side.size - 7)} for side in (train, validation)]
    expected = [tuple(validation[i : i + 8]) in runs[0] for i in range(193)]
    found = np.concatenate(list(shared_passages(validation, Shards(np.split(train, [47, 60])), 8)))
    assert found.tolist() == expected and 13 <= sum(expected) < 60
    assert hash_passages(train, 8).size == 393


PEAK = """
import sys
from pathlib import Path
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.suite import run_suite
from kssm_mlx.data import passages
from kssm_mlx.data.tokens import TokenData
from tests.support.appetite import peak_resident
passages.LOOKED_UP = 1 << 19
data = TokenData.open(sys.argv[1])
before = peak_resident()
print(*[check.verdict for check in run_suite(Context(data=data, tokenizer=data.tokenizer), ["C14", "C15"])])
print(peak_resident() - before)
"""


def test_c14_and_c15_of_four_times_the_tokens_take_no_more_memory(tmp_path):
    """Of files that are larger than what the checks hold."""
    from tests.data.streams.test_streams import prepare, recipe

    taken = []
    for size in (1 << 22, 1 << 24):
        letters = np.random.default_rng(size).integers(97, 123, size, dtype=np.uint8)
        path = tmp_path / f"{size}.txt"
        path.write_bytes(letters.tobytes())
        folder = prepare(recipe(f"file:{path}"), tmp_path / f"{size}").folder
        command = [sys.executable, "-c", PEAK, str(folder)]
        verdicts, peak = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        assert verdicts == "pass pass"
        taken.append(int(peak))
    assert taken[1] <= 1.2 * taken[0] and taken[1] < 1e8
