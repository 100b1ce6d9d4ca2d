import errno
import json
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from kssm_mlx import files
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.suite import run_suite
from kssm_mlx.data.preparation import texts as texts_at_once
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.digest import file_digest
from kssm_mlx.errors import DataError


@dataclass
class Recipe:
    source: str
    tokenizer: str = "bytes"
    split: str = "auto"
    validation: float = 0.2
    seed: int = 0


@pytest.fixture
def texts(tmp_path):
    """A folder of 30 short documents and the recipe that names it."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(f"document {i} says é {'again ' * (i % 5)}")
    return Recipe(f"dir:{folder}")


@pytest.fixture
def data(texts, tmp_path):
    return prepare(texts, tmp_path / "data")


def documents(split, tokenizer):
    bounds = [*split.starts.tolist(), split.ids.size]
    return [tokenizer.decode(split.ids[a:b]) for a, b in pairwise(bounds)]


def test_every_document_is_on_one_side_behind_its_separator(data, tmp_path):
    train, validation = (documents(s, data.tokenizer) for s in (data.train, data.validation))
    written = ["\0" + path.read_text() for path in (tmp_path / "texts").iterdir()]
    assert sorted(train + validation) == sorted(written)
    assert len(train) > len(validation) > 0


def test_files_are_raw_little_endian_ids(data):
    raw = (data.folder / "train.bin").read_bytes()
    assert data.train.ids.dtype == np.dtype("<u2") and len(raw) == 2 * data.train.ids.size
    assert raw[:4] == b"\0\0" + b"d\0"
    assert isinstance(data.train.ids, np.memmap)


def test_the_index_says_what_everything_was_made_from(data):
    index = data.index
    assert index["format"] == "kssm-tokens/1" and data.vocab_size == 256
    assert index["corpus"]["documents"] == 30 and index["split"]["method"] == "documents"
    assert index["tokenizer"]["digest"] == ByteTokenizer().digest
    assert set(index["files"]) == {p.name for p in data.folder.iterdir()} - {"index.json"}
    text = "".join(documents(data.validation, data.tokenizer)).replace("\0", "")
    assert index["splits"]["validation"]["utf8_bytes"] == len(text.encode())


def test_large_vocabularies_take_four_bytes(texts, tmp_path, monkeypatch):
    class Wide(ByteTokenizer):
        vocab_size = 70_000

        def encode(self, text):
            return super().encode(text) + 69_000

    monkeypatch.setattr(texts_at_once, "make_tokenizer", lambda *_, **__: Wide())
    data = prepare(texts, tmp_path / "wide")
    assert data.train.ids.dtype == np.dtype("<u4") and data.train.ids.max() > 65_535


def test_a_single_document_is_cut_where_it_is_90_percent(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 100)
    data = prepare(Recipe(f"file:{path}", "chars", validation=0.1), tmp_path / "data")
    assert (data.train.ids.size, data.validation.ids.size) == (900, 100)
    assert data.train.starts.tolist() == data.validation.starts.tolist() == [0]
    assert data.tokenizer.decode(data.validation.ids) == "abcdefghij" * 10
    assert data.bytes_per_target(99) == data.bytes_per_target(10) == 1.0


def test_the_same_recipe_gives_the_same_bytes(texts, data, tmp_path):
    again = prepare(texts, tmp_path / "again")
    assert again.index["files"] == data.index["files"]


def test_files_are_reused_until_something_they_depend_on_changes(texts, data, tmp_path):
    def written():
        return (data.folder / "train.bin").stat().st_mtime_ns

    before = written()
    prepare(texts, data.folder)
    assert written() == before
    prepare(Recipe(texts.source, seed=1), data.folder)
    after_seed = written()
    assert after_seed != before
    (tmp_path / "texts" / "00.txt").write_text("something else")
    prepare(Recipe(texts.source, seed=1), data.folder)
    assert written() != after_seed


def test_a_damaged_folder_is_prepared_again(texts, data):
    (data.folder / "train.bin").write_bytes(b"\0")
    assert prepare(texts, data.folder).verify()["train_tokens"] == data.train.ids.size


def test_a_crash_while_writing_leaves_no_index(texts, data, monkeypatch):
    real, count = files.replace, []

    def crash(path, content):
        count.append(path)
        if len(count) == 3:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(files, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        prepare(Recipe(texts.source, seed=7), data.folder)
    with pytest.raises(DataError, match=r"has no index\.json, so it holds no finished token files"):
        TokenData.open(data.folder)
    monkeypatch.setattr(files, "replace", real)
    assert prepare(Recipe(texts.source, seed=7), data.folder).verify()


def test_verify_reports_tokens_and_the_largest_id(data):
    assert data.verify() == {
        "train_tokens": data.train.ids.size,
        "train_max_id": int(data.train.ids.max()),
        "validation_tokens": data.validation.ids.size,
        "validation_max_id": int(data.validation.ids.max()),
    }


def rewrite(data, name, change, rehash=False):
    """Change the bytes of one file and, if asked, its digest in the index, as a buggy tool would."""
    path = data.folder / name
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)
    if rehash:
        index = json.loads((data.folder / "index.json").read_text())
        index["files"][name]["sha256"] = file_digest(path)
        (data.folder / "index.json").write_text(json.dumps(index))


def flip(raw):
    raw[10] ^= 1


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "train.docs.bin", "validation.docs.bin"])
def test_one_flipped_bit_is_found(data, name):
    rewrite(data, name, flip)
    with pytest.raises(
        DataError, match=rf"{name} has sha256 .*, its index says .*changed after it was written"
    ):
        TokenData.open(data.folder).verify()


@pytest.mark.parametrize("name", ["train.bin", "validation.docs.bin"])
def test_a_truncated_file_is_not_opened(data, name):
    rewrite(data, name, lambda raw: raw.pop())
    with pytest.raises(DataError, match=rf"{name} has \d+ bytes; expected \d+ for \d+ ids of uint"):
        TokenData.open(data.folder)


def test_a_npy_file_is_not_taken_for_raw_ids(data):
    np.save(data.folder / "train.npy", np.asarray(data.train.ids))
    (data.folder / "train.npy").rename(data.folder / "train.bin")
    with pytest.raises(DataError, match=r"train\.bin is a \.npy file; expected raw ids without its header"):
        TokenData.open(data.folder)


def test_an_id_outside_the_vocabulary_is_found_even_under_a_right_hash(data):
    def high(raw):
        raw[-1] = 1  # the high byte: 256 more than the id was

    rewrite(data, "validation.bin", high, rehash=True)
    with pytest.raises(DataError, match=r"validation\.bin has ids from 0 to \d{3}; expected 0 to 255"):
        TokenData.open(data.folder).verify()


def test_document_starts_must_rise_even_under_a_right_hash(data):
    def swap(raw):
        raw[8:16], raw[16:24] = raw[16:24], raw[8:16]

    rewrite(data, "train.docs.bin", swap, rehash=True)
    with pytest.raises(DataError, match=r"train\.docs\.bin must start at 0, rise and stay below"):
        TokenData.open(data.folder).verify()


def test_ids_are_checked_before_they_are_written(texts, tmp_path, monkeypatch):
    class Broken(ByteTokenizer):
        def encode(self, text):
            return super().encode(text) + 200

    monkeypatch.setattr(texts_at_once, "make_tokenizer", lambda *_, **__: Broken())
    with pytest.raises(DataError, match=r"train\.bin has ids from 0 to \d+; expected 0 to 255"):
        prepare(texts, tmp_path / "broken")
    assert not (tmp_path / "broken" / "train.bin").exists()


def test_another_tokenizer_is_refused(data):
    CharTokenizer("abc").save(data.folder)
    with pytest.raises(DataError, match=r"tokenizer\.json has digest .*, the ids were made with"):
        TokenData.open(data.folder)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not JSON"),
        ("[]", "has format 'list'; expected 'kssm-tokens/1'"),
        ('{"format": "kssm-tokens/9"}', "has format 'kssm-tokens/9'; expected 'kssm-tokens/1'"),
        ('{"format": "kssm-tokens/1", "dtype": "float32"}', "dtype: input should be 'uint16' or 'uint32'"),
    ],
)
def test_a_foreign_index_is_refused(data, content, message):
    (data.folder / "index.json").write_text(content)
    with pytest.raises(DataError, match=message):
        TokenData.open(data.folder)


@pytest.mark.parametrize(
    "path, message",
    [
        (["vocab_size"], "vocab_size: field required"),
        (["splits", "train", "tokens"], r"splits\.train\.tokens: field required"),
        (["splits", "validation"], r"splits\.validation: field required"),
        (["files", "validation.bin"], r"files: value error, got .*, expected tokenizer\.json, train\.bin"),
    ],
)
def test_an_index_that_lacks_a_key_is_refused(data, path, message):
    index = json.loads((data.folder / "index.json").read_text())
    *parents, last = path
    section = index
    for key in parents:
        section = section[key]
    del section[last]
    (data.folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=message):
        TokenData.open(data.folder)


def test_a_file_in_the_way_and_a_full_disk_are_one_line(texts, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write token files in .*file: file exists"):
        prepare(texts, tmp_path / "file")

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(DataError, match=r"cannot write token files in .*: no space left on device"):
        prepare(texts, tmp_path / "data")


def test_too_little_text_for_two_sides(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="leave one side of the split 'contiguous' empty"):
        prepare(Recipe(f"file:{tmp_path / 'a.txt'}"), tmp_path / "data")


CHINESE = "\u4e2d\u6587\u6587\u5b57\u7684\u5b57\u8282\u6bd4\u5b57\u7b26\u591a"
MIXED = "plain letters and nothing else. " * 40 + (CHINESE + ". ") * 80


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "bpe:300"])
@pytest.mark.parametrize("targets", [64, 700, 1200])
def test_bytes_are_those_of_the_scored_tokens(tmp_path, tokenizer, targets):
    """Half of the held-out text has one byte a character and half three: the mean of the side is neither."""
    path = tmp_path / "a.txt"
    path.write_text(MIXED * 5, "utf-8")
    data = prepare(Recipe(f"file:{path}", tokenizer, validation=0.2), tmp_path / "data")
    targets = min(targets, data.validation.ids.size - 1)
    text = data.tokenizer.decode(data.validation.ids[1 : targets + 1])
    exact = len(text.encode()) / targets
    cut = 6 / targets  # a character cut at either end, in bytes
    assert data.bytes_per_target(targets) == pytest.approx(exact, abs=cut if tokenizer != "chars" else 1e-12)
    whole = data.index["splits"]["validation"]
    if tokenizer == "chars" and targets == 64:
        assert data.bytes_per_target(targets) == 1.0 < whole["utf8_bytes"] / whole["tokens"] - 0.5


def test_separators_have_no_bytes(data):
    ids = data.validation.ids
    text = "".join(documents(data.validation, data.tokenizer)).replace("\0", "")
    assert data.bytes_per_target(ids.size - 1) * (ids.size - 1) == pytest.approx(len(text.encode()))


def word_level(path, normalizer=None):
    """A tokenizer of whole words that are all in one text, or that lowercases them first."""
    backend = Backend(
        models.WordLevel({"[UNK]": 0, "Alpha": 1, "alpha": 2, "beta": 3, " ": 4}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "isolated")
    backend.decoder = decoders.Fuse()
    if normalizer:
        backend.normalizer = normalizer
    backend.save(str(path))
    return f"hf:{path}"


@pytest.mark.parametrize(
    "text, normalizer, lost",
    [
        ("Alpha beta Alpha beta ", None, 0.0),
        ("Alpha beta Alpha beta ", normalizers.Lowercase(), 2 / 22),  # two capitals of 22 characters
        ("Alpha beta gamma beta ", None, None),  # "gamma" becomes [UNK]
    ],
)
def test_what_a_tokenizer_loses_is_in_the_index_and_in_c13(tmp_path, text, normalizer, lost):
    (tmp_path / "a.txt").write_text(text * 200)
    spec = word_level(tmp_path / "tokenizer.json", normalizer)
    data = prepare(Recipe(f"file:{tmp_path / 'a.txt'}", spec, validation=0.2), tmp_path / "data")
    found = {name: side["lost"] for name, side in data.index["splits"].items()}
    assert all(share == pytest.approx(lost, rel=0.1) for share in found.values()) if lost else True
    (check,) = run_suite(Context(data=data, tokenizer=data.tokenizer), ["C13"])
    assert check.verdict == ("pass" if lost == 0 else "fail")
    assert lost == 0 or "the tokenizer lost" in check.got


def test_an_index_of_before_has_nothing_to_say_of_losses(data):
    path = data.folder / "index.json"
    index = json.loads(path.read_text())
    for side in index["splits"].values():
        del side["lost"]
    path.write_text(json.dumps(index))
    assert TokenData.open(data.folder).index["splits"]["train"]["lost"] is None
    (check,) = run_suite(Context(data=TokenData.open(data.folder), tokenizer=data.tokenizer), ["C13"])
    assert check.verdict == "pass"
