import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.data.corpora import sources
from kssm_mlx.data.corpora.corpus import corpus_digest
from kssm_mlx.data.corpora.repeats import remove_repeats
from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.errors import ConfigError, DataError


def passages(text, length=64):
    raw = text.encode()
    return {raw[i : i + length] for i in range(len(raw) - length + 1)}


def test_pydoc_is_english_prose_with_a_licence():
    corpus = open_corpus("pydoc")
    assert (corpus.name, corpus.licence) == ("pydoc", "PSF-2.0")
    assert len(corpus.documents) >= 60 and sum(map(len, corpus.documents)) > 300_000
    assert any("repeated execution as long as an" in text for text in corpus.documents)
    assert corpus.digest == open_corpus("pydoc").digest


def test_no_passage_of_pydoc_is_in_two_documents():
    seen = set()
    for text in open_corpus("pydoc").documents:
        own = passages(text)
        assert seen.isdisjoint(own)
        seen |= own


@given(st.lists(st.text(alphabet="ab\n", max_size=60), max_size=6), st.integers(2, 8))
def test_without_repeats_leaves_no_shared_passage(documents, length):
    kept = remove_repeats(documents, length)
    for i, text in enumerate(kept):
        for other in kept[:i]:
            assert passages(text, length).isdisjoint(passages(other, length))
    if documents:
        assert kept[0] == documents[0]


def test_a_file_is_one_document_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfh\xc3\xa9llo\n")
    corpus = open_corpus(f"file:{path}")
    assert corpus.documents == ["héllo\n"] and corpus.name == "a.txt"


def test_a_folder_is_its_texts_in_the_order_of_their_names(tmp_path):
    for name in ("b.txt", "a/z.md", "a/no.py", ".hidden/c.txt", "empty.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.md" else name)
    assert open_corpus(f"dir:{tmp_path}").documents == ["a/z.md", "b.txt"]


def test_jsonl_takes_the_text_of_every_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "id": 1}\r\n\n{"text": "two\\n"}\n')
    assert open_corpus(f"jsonl:{path}").documents == ["one", "two\n"]


def test_the_digest_sees_where_a_document_ends():
    assert corpus_digest(["ab", "c"]) != corpus_digest(["a", "bc"])
    assert corpus_digest(["ab", "c"]) == corpus_digest(["ab", "c"])


@pytest.mark.parametrize(
    "source, message",
    [
        ("pidoc", "did you mean 'pydoc'"),
        ("pydoc:x", "expected pydoc, themes, file:PATH"),
        ("file:", "expected pydoc, themes, file:PATH"),
        ("jsnl:a", "did you mean 'jsonl:a'"),
    ],
)
def test_an_unknown_source_is_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        open_corpus(source)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no text"),
        (b" \n\t\n", "holds no text"),
        (b"abc\0def", "byte 3 is NUL"),
        (b"abc\xff\xfe", r"not UTF-8: byte 3 is 0xff \(invalid start byte\); .*iconv"),
        (b"ok\xe2\x82", "not UTF-8: byte 2 is 0xe2"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_corpus(f"file:{path}")


@pytest.mark.parametrize("kind", ["file", "dir", "jsonl"])
def test_a_missing_path_is_named(tmp_path, kind):
    with pytest.raises(DataError, match=r"nowhere does not exist; data\.source takes a path"):
        open_corpus(f"{kind}:{tmp_path / 'nowhere'}")


def test_a_folder_where_a_file_is_expected_and_the_reverse(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"cannot read .*: is a directory"):
        open_corpus(f"file:{tmp_path}")
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: not a directory"):
        open_corpus(f"dir:{tmp_path / 'a.txt'}")


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no .txt, .text, .md, .markdown file"):
        open_corpus(f"dir:{tmp_path}")


def test_a_forbidden_file_is_refused(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", forbidden)  # chmod does not stop root
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: permission denied"):
        open_corpus(f"file:{tmp_path / 'a.txt'}")


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"txt": "x"}', "line 2 has no string field 'text': got keys txt"),
        ('{"text": 3}', "line 2 has no string field 'text': got int"),
        ("{}", "line 2 has no string field 'text': got keys none"),
        ('["x"]', "line 2 has no string field 'text': got list"),
        ('{"text": ', "line 2 is not JSON"),
        ('{"text": "a\\u0000"}', "line 2 has a NUL or half a surrogate pair"),
        ('{"text": "a\\ud800"}', "line 2 has a NUL or half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        open_corpus(f"jsonl:{path}")


def test_datasets_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'kssm-mlx\[data\]'"):
        open_corpus("hf:some/set")


class Rows(dict):
    """What `datasets.load_dataset` returns, as far as it is used."""

    column_names = property(list)
    info = SimpleNamespace(license="cc0")


def fake_datasets(monkeypatch, load):
    module = ModuleType("datasets")
    module.exceptions = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_a_dataset_gives_its_text_column(monkeypatch):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return Rows(text=["one", "two"])

    fake_datasets(monkeypatch, load)
    corpus = open_corpus("hf:owner/set:small")
    assert corpus.documents == ["one", "two"] and corpus.licence == "cc0"
    assert asked == [(("owner/set", "small"), {"split": "train"})]


def test_a_dataset_without_text_or_not_to_be_had_is_refused(monkeypatch):
    fake_datasets(monkeypatch, lambda *a, **k: Rows(body=["x"], title=["y"]))
    with pytest.raises(DataError, match="has the columns body, title; expected one called text"):
        open_corpus("hf:owner/set")

    def gone(*args, **kwargs):
        raise module.exceptions.DatasetsError("no such dataset\nsecond line")

    module = fake_datasets(monkeypatch, gone)
    with pytest.raises(DataError, match=r"cannot load the dataset 'owner/set': no such dataset$"):
        open_corpus("hf:owner/set")


def test_python_without_pydoc_topics(monkeypatch):
    sources._topics.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="comes without pydoc_data"):
        open_corpus("pydoc")


def test_a_folder_is_read_through_links_once_and_in_every_spelling(tmp_path):
    root, other = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "sub", other):
        folder.mkdir(parents=True)
    (root / "a.TXT").write_text("capitals")
    (root / "b.markdown").write_text("long ending")
    (root / "c.py").write_text("no text")
    (root / "sub" / "d.txt").write_text("below")
    (other / "e.md").write_text("linked")
    (root / "link").symlink_to(other)
    (root / "sub" / "up").symlink_to(root)  # a circle
    (root / "again").symlink_to(other)
    found = open_corpus(f"dir:{root}").documents
    assert sorted(found) == ["below", "capitals", "linked", "long ending"]


@pytest.mark.parametrize("value", [None, 3, ["a"], b"x", "nul\0", "half \ud800"])
def test_a_row_of_a_dataset_without_usable_text_is_named(monkeypatch, value):
    fake_datasets(monkeypatch, lambda *_, **__: Rows(text=["fine", value]))
    with pytest.raises(DataError, match=r"hf:x row 1 has (no string field 'text'|a NUL or half)"):
        open_corpus("hf:x")


def test_a_line_nested_a_thousand_deep_is_one_line_and_long_digits_do_not_matter(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine", "other": ' + "7" * 5000 + "}\n")
    assert open_corpus(f"jsonl:{path}").documents == ["fine"]
    path.write_text('{"text": "fine", "other": ' + "[" * 1000 + "]" * 1000 + "}\n")
    with pytest.raises(DataError, match="line 1 is not JSON: nested more than 200 levels"):
        open_corpus(f"jsonl:{path}")
