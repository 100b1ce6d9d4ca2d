"""Text of any size into token files: ids and digests of the text at once, in bounded memory, after a kill."""

import json
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from kssm_mlx.data.batches import random_batch
from kssm_mlx.data.streams import cuts, documents, writer
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.data.tokens import TokenData, prepare
from kssm_mlx.errors import DataError
from tests.support.tokenizer_kinds import KINDS, random_text

NEVER = 1 << 60
WORDS = ["alpha", "béta", "gamma", " delta", "x" * 40, "…", "“q”", "<|eos|>"]
SPACES = [" ", " ", "\n", "\n\n", "  ", "\t"]


def recipe(source, **options):
    plain = {"tokenizer": "bytes", "split": "auto", "validation": 0.1, "seed": 3, "task": {}}
    return SimpleNamespace(
        source=source, **{**plain, "special_tokens": False, "deduplicate": False, **options}
    )


def text(length: int, seed: int = 0) -> str:
    rng, parts = random.Random(seed), []
    while sum(map(len, parts)) < length:
        parts.append(rng.choice(WORDS) + rng.choice(SPACES))
    return "".join(parts)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One file, a folder with a blank and a repeated document, and a JSONL file."""
    home = tmp_path_factory.mktemp("sources")
    (home / "one.txt").write_text("\ufeff" + text(20_000))
    (home / "many").mkdir()
    for i in range(24):
        own = "  \n" if i == 7 else text(1500 if i % 5 else 80, seed=i)
        (home / "many" / f"{i:02d}.txt").write_text(own)
    (home / "many" / "99.txt").write_text((home / "many" / "03.txt").read_text())
    lines = [json.dumps({"text": text(400, seed=i)}) for i in range(22)]
    (home / "lines.jsonl").write_text("\n".join([*lines[:4], "", *lines[4:]]) + "\n")
    return {
        "file": f"file:{home / 'one.txt'}",
        "dir": f"dir:{home / 'many'}",
        "jsonl": f"jsonl:{home / 'lines.jsonl'}",
    }


@pytest.fixture
def in_pieces(monkeypatch):
    """Every source is large, and read in pieces of some hundred characters."""
    for module, name, value in (
        (documents, "LARGE", 0),
        (documents, "BLOCK", 333),
        (cuts, "PIECE", 700),
        (cuts, "AROUND", 100),
        (writer, "EVERY", 500),
    ):
        monkeypatch.setattr(module, name, value)


def at_once(monkeypatch, of, folder):
    with monkeypatch.context() as patched:
        patched.setattr(documents, "LARGE", NEVER)
        return prepare(of, folder)


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "chars-reserved", "bpe:270"])
@pytest.mark.parametrize("split", ["auto", "documents", "contiguous"])
@pytest.mark.parametrize("kind", ["file", "dir", "jsonl"])
def test_ids_digests_and_batches_are_those_of_the_text_at_once(
    kind, split, tokenizer, sources, in_pieces, monkeypatch, tmp_path
):
    of = recipe(sources[kind], split=split, tokenizer=tokenizer, special_tokens=tokenizer == "chars-reserved")
    if (kind, split) == ("file", "documents"):
        with pytest.raises(DataError) as once:
            at_once(monkeypatch, of, tmp_path / "a")
        with pytest.raises(DataError) as streamed:
            prepare(of, tmp_path / "b")
        assert str(once.value) == str(streamed.value)
        return
    a, b = at_once(monkeypatch, of, tmp_path / "a"), prepare(of, tmp_path / "b")
    assert a.index == b.index and a.index["files"].keys() >= {"train.bin", "validation.docs.bin"}
    assert {p.name for p in a.folder.iterdir()} == {p.name for p in b.folder.iterdir()}
    b.verify()
    for x, y in zip(random_batch(a.train, 1, 5, 4, 32), random_batch(b.train, 1, 5, 4, 32), strict=True):
        np.testing.assert_array_equal(x, y)


def test_finished_files_are_opened_and_not_written_again(sources, in_pieces, monkeypatch, tmp_path):
    of = recipe(sources["dir"])
    prepare(of, tmp_path / "data")
    monkeypatch.setattr(ByteTokenizer, "encode", lambda *_: pytest.fail("tokenized again"))
    assert prepare(of, tmp_path / "data").train.ids.size
    assert not (tmp_path / "data" / writer.WORK).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_tokens_of_the_whole(kind, monkeypatch):
    """Also of tokenizers that begin each text with a space, which are given the whole."""
    monkeypatch.setattr(cuts, "PIECE", 200)
    monkeypatch.setattr(cuts, "AROUND", 60)
    tokenizer, rng = KINDS[kind](), random.Random(1)
    whole = "\n".join(random_text(rng).replace("\ufffd", "") for _ in range(120))
    blocks = [whole[i : i + 90] for i in range(0, len(whole), 90)]
    parts = list(cuts.encode_pieces(blocks, tokenizer, False))
    assert "".join(part for part, _ in parts) == whole
    np.testing.assert_array_equal(np.concatenate([ids for _, ids in parts]), tokenizer.encode(whole))
    assert len(parts) > 3 or kind == "llama"


def test_a_long_word_is_not_cut():
    """Nowhere are the tokens around a cut those of the whole, so there is none."""
    joined = KINDS["byte level"]()
    assert cuts.find_cut("the" * 3000, joined.encode) is None


CHILD = """
import os, signal, sys
from kssm_mlx.data.streams import cuts, documents, writer
from kssm_mlx.data.tokens import prepare
from tests.data.streams.test_streams import recipe
from tests.support.appetite import peak_resident
documents.LARGE, cuts.PIECE, writer.EVERY, left = 0, 1000, 2000, [3]
write = writer._write_journal
def and_die(*args):
    write(*args)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
writer._write_journal = and_die
prepare(recipe(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize("kind", ["file", "jsonl"])
def test_after_a_kill_it_goes_on_where_it_was(kind, sources, in_pieces, monkeypatch, tmp_path):
    killed = subprocess.run([sys.executable, "-c", CHILD, sources[kind], str(tmp_path / "data")])
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "data" / "index.json").exists()
    read, encode = [], ByteTokenizer.encode
    monkeypatch.setattr(ByteTokenizer, "encode", lambda self, text: read.append(text) or encode(self, text))
    monkeypatch.setattr(writer, "survey", lambda *_: pytest.fail("surveyed again"))
    resumed = prepare(recipe(sources[kind]), tmp_path / "data")
    again = sum(len(text.encode()) for text in read)
    monkeypatch.undo()
    whole = at_once(monkeypatch, recipe(sources[kind]), tmp_path / "whole")
    assert resumed.index == whole.index
    total = sum(side["utf8_bytes"] for side in whole.index["splits"].values())
    assert 0 < again <= total - 3 * 2000


@pytest.mark.parametrize("change", ["text", "setting", "file gone"])
def test_work_of_something_else_is_begun_anew(change, sources, in_pieces, monkeypatch, tmp_path):
    source = tmp_path / "one.txt"
    source.write_text(text(9000))
    with monkeypatch.context() as patched:
        patched.setattr(writer, "_append", stop_at(5, writer._append))
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe(f"file:{source}"), tmp_path / "data")
    assert (tmp_path / "data" / writer.WORK / writer.JOURNAL).is_file()
    of = recipe(f"file:{source}", validation=0.2 if change == "setting" else 0.1)
    if change == "text":
        source.write_text(text(9000, seed=1))
    if change == "file gone":
        (tmp_path / "data" / writer.WORK / "train.bin").unlink()
    assert prepare(of, tmp_path / "data").index == at_once(monkeypatch, of, tmp_path / "whole").index


def stop_at(count, function):
    calls = []

    def stopping(*args):
        calls.append(args)
        if len(calls) > count:
            raise KeyboardInterrupt
        return function(*args)

    return stopping


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"word " * 200 + b"\0", r"one.txt is not text: byte 1000 is NUL; expected UTF-8 text"),
        (b"word " * 200 + b"\xff rest", r"one.txt is not UTF-8: byte 1000 is 0xff \(invalid start byte\)"),
        ("é".encode() * 166 + b"\xc3", r"one.txt is not UTF-8: byte 332 is 0xc3 \(unexpected end of data\)"),
        (b" \n" * 300, r"holds no text; expected at least one document that is not blank"),
    ],
)
def test_what_is_no_text_is_refused_in_the_words_of_the_text_at_once(
    raw, message, in_pieces, monkeypatch, tmp_path
):
    path = tmp_path / "one.txt"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as once:
        at_once(monkeypatch, recipe(f"file:{path}"), tmp_path / "a")
    with pytest.raises(DataError) as streamed:
        prepare(recipe(f"file:{path}"), tmp_path / "b")
    assert str(streamed.value) == str(once.value) and not (tmp_path / "b" / "index.json").exists()


def test_deduplicated_text_and_small_text_are_read_at_once(sources, monkeypatch, tmp_path):
    monkeypatch.setattr(writer, "survey", lambda *_: pytest.fail("streamed"))
    assert isinstance(prepare(recipe(sources["file"]), tmp_path / "a"), TokenData)
    monkeypatch.setattr(documents, "LARGE", 0)
    assert isinstance(prepare(recipe(sources["dir"], deduplicate=True), tmp_path / "b"), TokenData)


PEAK = """
import sys
from kssm_mlx.data.streams import documents
from kssm_mlx.data.tokens import prepare
from tests.data.streams.test_streams import recipe
from tests.support.appetite import peak_resident
documents.LARGE = int(sys.argv[3])
prepare(recipe(sys.argv[1]), sys.argv[2])
print(peak_resident())
"""


def test_four_times_the_text_takes_no_more_memory(tmp_path):
    """And at once it does, which is how this test would notice."""
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    line = text(1 << 16)
    small.write_text(line * 80)
    large.write_text(line * 320)
    assert large.stat().st_size > 20e6

    def peak(path, least):
        out = tmp_path / f"{path.stem}-{least}"
        found = subprocess.run(
            [sys.executable, "-c", PEAK, f"file:{path}", str(out), str(least)], stdout=subprocess.PIPE
        )
        return int(found.stdout)

    streamed = peak(small, 0)
    assert peak(large, 0) <= 1.1 * streamed
    assert peak(large, NEVER) > 1.5 * streamed
