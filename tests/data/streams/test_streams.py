"""Text of any size into token files: ids and digests of the text at once, in bounded memory, after a kill."""

import json
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from kssm_mlx.data import shards
from kssm_mlx.data.batches import random_batch
from kssm_mlx.data.preparation import streamed
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.preparation.streamed import WORK
from kssm_mlx.data.streams import cuts, documents, repeats, writer
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import DataError
from tests.support.tokenizer_kinds import KINDS, random_text

NEVER = 1 << 60
WORDS = ["alpha", "béta", "gamma", " delta", "x" * 40, "…", "“q”", "<|eos|>"]
SPACES = [" ", " ", "\n", "\n\n", "  ", "\t"]


def recipe(*sources, **options):
    """Of one source, or of several as a mixture whose weights are 1, 2, 3, ..."""
    plain = {"tokenizer": "bytes", "split": "auto", "validation": 0.1, "seed": 3, "task": {}, "sources": []}
    of = SimpleNamespace(
        source=sources[0], **{**plain, "special_tokens": False, "deduplicate": False, **options}
    )
    if len(sources) > 1:
        parts = [SimpleNamespace(source=s, weight=i, epochs=None) for i, s in enumerate(sources, 1)]
        of.source, of.sources, of.origin = "pydoc", parts, " + ".join(sources)
    return of


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
    (home / "many" / "98.txt").write_text("new \n\n\n" + (home / "many" / "05.txt").read_text())
    (home / "wiki").mkdir()
    for name, count in (("train", 9), ("valid", 3)):
        articles = (f" = {name} {i} = \n\n {text(700, seed=f'{name} {i}')}\n\n" for i in range(count))
        (home / "wiki" / f"wiki.{name}.raw").write_text("".join(articles))
    lines = [json.dumps({"text": text(400, seed=i)}) for i in range(22)]
    (home / "lines.jsonl").write_text("\n".join([*lines[:4], "", *lines[4:]]) + "\n")
    return {
        "file": f"file:{home / 'one.txt'}",
        "dir": f"dir:{home / 'many'}",
        "jsonl": f"jsonl:{home / 'lines.jsonl'}",
        "wikitext": f"wikitext:{home / 'wiki'}",
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
        (repeats, "BLOCK", 300),
        (repeats, "SORTED", 2000),
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


MIXTURES = (("file", "dir", "jsonl"), ("dir", "themes:samples=40"), ("wikitext", "jsonl"))


def assert_same(a, b):
    """Two folders of token files are the same but for where their ids are cut."""
    x, y = ({**of.index, "files": {k: v["sha256"] for k, v in of.index["files"].items()}} for of in (a, b))
    assert x == y and a.verify() == b.verify()
    batches = (random_batch(of.train, 1, 5, 4, 16) for of in (a, b))
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("tokenizer", ["chars", "bpe:270"])
@pytest.mark.parametrize("kinds", MIXTURES, ids=" ".join)
def test_a_mixture_is_that_of_its_texts_at_once(
    kinds, tokenizer, deduplicate, sources, in_pieces, monkeypatch, tmp_path
):
    names = [sources.get(kind, kind) for kind in kinds]
    of = recipe(*names, tokenizer=tokenizer, deduplicate=deduplicate)
    a, b = at_once(monkeypatch, of, tmp_path / "a"), prepare(of, tmp_path / "b")
    assert len(b.train.parts) == len(kinds) and b.validation.owners is not None
    assert_same(a, b)
    assert {p.name for p in a.folder.iterdir()} == {p.name for p in b.folder.iterdir()}


@pytest.mark.parametrize("kind", ["file", "dir", "jsonl"])
def test_deduplicated_text_is_that_of_the_text_at_once(kind, sources, in_pieces, monkeypatch, tmp_path):
    of = recipe(sources[kind], deduplicate=True)
    a, b = at_once(monkeypatch, of, tmp_path / "a"), prepare(of, tmp_path / "b")
    assert_same(a, b)
    whole = prepare(recipe(sources[kind]), tmp_path / "whole").index["splits"]
    left = b.index["splits"]
    assert sum(s["utf8_bytes"] for s in left.values()) < sum(s["utf8_bytes"] for s in whole.values())


@pytest.mark.parametrize("most", [1, 7, 4096, 16_001])
@pytest.mark.parametrize("kinds", [("dir",), ("file", "jsonl")], ids=" ".join)
def test_in_shards_it_is_what_it_is_in_one_file(most, kinds, sources, in_pieces, monkeypatch, tmp_path):
    """Streamed and at once; borders lie within documents, and a shard has a single token or all but a few."""
    (tmp_path / "few.txt").write_text("few " * 30)
    of = recipe(*(sources[kind] if most > 7 else f"file:{tmp_path / 'few.txt'}" for kind in kinds))
    one = prepare(of, tmp_path / "one")
    monkeypatch.setattr(shards, "MOST", most)
    streamed, together = prepare(of, tmp_path / "a"), at_once(monkeypatch, of, tmp_path / "b")
    count = -(-one.train.ids.size // most)
    for cut in (streamed, together):
        assert len(list(cut.folder.glob("train.[0-9]*.bin"))) == count > 1
        assert cut.index["files"]["train.bin"] == {**one.index["files"]["train.bin"], "shards": count}
        assert_same(one, cut)
    monkeypatch.undo()
    assert prepare(of, tmp_path / "b").index["files"]["train.bin"]["shards"] == count  # reused as it is


def test_shards_are_replaced_and_a_damaged_one_is_found(sources, in_pieces, monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "MOST", 5000)
    data = prepare(recipe(sources["file"]), tmp_path / "data")
    last = sorted(data.folder.glob("train.*.bin"))[-2]
    raw = last.read_bytes()
    last.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(DataError, match=r"train.bin has sha256 .* its index says .*: the file changed"):
        TokenData.open(data.folder).verify()
    last.write_bytes(raw[:-2])
    with pytest.raises(DataError, match=r"train.0000.bin to train.\d+.bin has \d+ bytes; expected \d+ for"):
        TokenData.open(data.folder)
    last.unlink()
    with pytest.raises(DataError, match=rf"cannot read .*{last.name}: no such file"):
        TokenData.open(data.folder)
    monkeypatch.setattr(shards, "MOST", 1 << 30)
    prepare(recipe(sources["file"]), data.folder)
    assert {p.name for p in data.folder.glob("train*.bin")} == {"train.bin", "train.docs.bin"}


def test_finished_files_are_opened_and_not_written_again(sources, in_pieces, monkeypatch, tmp_path):
    of = recipe(sources["dir"])
    prepare(of, tmp_path / "data")
    monkeypatch.setattr(ByteTokenizer, "encode", lambda *_: pytest.fail("tokenized again"))
    assert prepare(of, tmp_path / "data").train.ids.size
    assert not (tmp_path / "data" / WORK).exists()


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
from kssm_mlx.data import shards
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.streams import cuts, documents, writer
from tests.data.streams.test_streams import recipe
documents.LARGE, cuts.PIECE, writer.EVERY, shards.MOST, left = 0, 1000, 2000, 3000, [int(sys.argv[1])]
write = writer._write_journal
def and_die(*args):
    write(*args)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
writer._write_journal = and_die
prepare(recipe(*sys.argv[3:], deduplicate=True), sys.argv[2])
"""


@pytest.mark.parametrize("kinds, entries", [(("file",), 3), (("jsonl",), 3), (("jsonl", "file"), 6)])
def test_after_a_kill_it_goes_on_where_it_was(kinds, entries, sources, in_pieces, monkeypatch, tmp_path):
    """Of a mixture in the second source; the first is not read for tokens again."""
    names = [sources[kind] for kind in kinds]
    command = [sys.executable, "-c", CHILD, str(entries), str(tmp_path / "data"), *names]
    killed = subprocess.run(command)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "data" / "index.json").exists()
    read, encode = [], ByteTokenizer.encode
    monkeypatch.setattr(ByteTokenizer, "encode", lambda self, text: read.append(text) or encode(self, text))
    monkeypatch.setattr(writer, "survey", lambda *_: pytest.fail("surveyed again"))
    monkeypatch.setattr(repeats, "_find_repeats", lambda *_: pytest.fail("repeats looked for again"))
    monkeypatch.setattr(shards, "MOST", 3000)
    of = recipe(*names, deduplicate=True)
    resumed = prepare(of, tmp_path / "data")
    again = sum(len(text.encode()) for text in read)
    monkeypatch.undo()
    whole = at_once(monkeypatch, of, tmp_path / "whole")
    total = sum(side["utf8_bytes"] for side in whole.index["splits"].values())
    assert 0 < again <= total - 3 * 2000
    assert_same(whole, resumed)


def test_a_mixture_that_stopped_while_it_was_laid_is_laid_again(sources, in_pieces, monkeypatch, tmp_path):
    of = recipe(sources["file"], sources["dir"])
    with monkeypatch.context() as patched:
        patched.setattr(streamed, "_finish", stop_at(1, streamed._finish))
        with pytest.raises(KeyboardInterrupt):
            prepare(of, tmp_path / "data")
    with monkeypatch.context() as patched:
        patched.setattr(ByteTokenizer, "encode", lambda *_: pytest.fail("tokenized again"))
        resumed = prepare(of, tmp_path / "data")
    assert_same(at_once(monkeypatch, of, tmp_path / "whole"), resumed)


@pytest.mark.parametrize("change", ["text", "setting", "file gone"])
def test_work_of_something_else_is_begun_anew(change, sources, in_pieces, monkeypatch, tmp_path):
    source = tmp_path / "one.txt"
    source.write_text(text(9000))
    with monkeypatch.context() as patched:
        patched.setattr(writer, "_append", stop_at(5, writer._append))
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe(f"file:{source}"), tmp_path / "data")
    assert (tmp_path / "data" / WORK / "0" / writer.JOURNAL).is_file()
    of = recipe(f"file:{source}", validation=0.2 if change == "setting" else 0.1)
    if change == "text":
        source.write_text(text(9000, seed=1))
    if change == "file gone":
        (tmp_path / "data" / WORK / "0" / "train.bin.0").unlink()
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


def test_small_text_is_read_at_once(sources, monkeypatch, tmp_path):
    monkeypatch.setattr(writer, "survey", lambda *_: pytest.fail("streamed"))
    assert isinstance(prepare(recipe(sources["file"]), tmp_path / "a"), TokenData)
    assert isinstance(prepare(recipe(sources["file"], sources["dir"]), tmp_path / "b"), TokenData)


PEAK = """
import sys
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.streams import cuts, documents, repeats
from tests.data.streams.test_streams import recipe
from tests.support.appetite import peak_resident
# A sixteenth of what is held at once, so that small texts are large.
documents.BLOCK = cuts.PIECE = 1 << 16
repeats.BLOCK, repeats.SORTED = 1 << 14, 1 << 21
documents.LARGE = int(sys.argv[1])
prepare(recipe(*sys.argv[4:], deduplicate=bool(sys.argv[3])), sys.argv[2])
print(peak_resident())
"""


def peak(out, least, sources, deduplicate=""):
    """Bytes resident at most, of a process that prepares `sources`; those of `least` bytes are streamed."""
    command = [sys.executable, "-c", PEAK, str(least), str(out), deduplicate, *sources]
    return int(subprocess.run(command, stdout=subprocess.PIPE).stdout)


def test_four_times_the_text_takes_no_more_memory(tmp_path):
    """Of a mixture of it with itself. And at once it does, which is how this test would notice."""
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    line = text(1 << 16)
    small.write_text(line * 40)
    large.write_text(line * 160)
    assert large.stat().st_size > 10e6
    streamed = peak(tmp_path / "a", 0, [f"file:{small}"] * 2)
    assert peak(tmp_path / "b", 0, [f"file:{large}"] * 2) <= 1.1 * streamed
    assert peak(tmp_path / "c", NEVER, [f"file:{large}"] * 2) > 1.5 * streamed


def test_four_times_the_text_is_deduplicated_in_no_more_memory(tmp_path):
    """Half of it says what the other half says, one paragraph after the other."""
    numbers = np.random.default_rng(0).integers(1 << 60, size=(1 << 13, 16))
    lines = [" ".join(map(str, row)) for row in numbers.tolist()]
    paths = []
    for size in (len(lines) // 4, len(lines)):
        paths.append(tmp_path / f"{size}.txt")
        paths[-1].write_text("\n\n".join(lines[: size // 2] * 2))
    small, large = (f"file:{path}" for path in paths)
    streamed = peak(tmp_path / "a", 0, [small], "deduplicate")
    assert peak(tmp_path / "b", 0, [large], "deduplicate") <= 1.2 * streamed
    assert peak(tmp_path / "c", NEVER, [large], "deduplicate") > 1.5 * streamed
    index = TokenData.open(tmp_path / "b").index["splits"]
    left = sum(side["utf8_bytes"] for side in index.values())
    assert left == len("\n\n".join(lines[: len(lines) // 2]).encode())
