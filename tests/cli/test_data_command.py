"""`kssm data`: what it writes, that recipes read it, what it prints and what it refuses."""

import json

import pytest

from kssm_mlx.data.corpora import sources
from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.corpora.themes import themed_samples
from kssm_mlx.data.streams import cuts, documents
from kssm_mlx.data.tokenizers.factory import make_tokenizer
from tests.support.cli_fakes import kssm, refused

BOOK = """Title: {title}

*** START OF THE PROJECT GUTENBERG EBOOK {title} ***

CHAPTER I.

{text}

*** END OF THE PROJECT GUTENBERG EBOOK {title} ***
"""


def test_synthetic_themes_are_written_as_recipes_read_them(tmp_path):
    out = tmp_path / "new" / "themes.jsonl"
    result = kssm("data", "synthetic-themes", out, "--seed", 4, "--samples", 720)
    assert result.exit_code == 0 and result.stdout == f"written: {out}, 720 samples on 16 themes\n"
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert records == [{"text": s.text, "theme": s.theme} for s in themed_samples(4, 720)]
    assert open_corpus(f"jsonl:{out}").digest == open_corpus("themes:seed=4,samples=720").digest
    first = out.read_bytes()
    kssm("data", "synthetic-themes", out, "--seed", 4, "--samples", 720)
    assert out.read_bytes() == first
    kssm("data", "synthetic-themes", out, "--seed", 5, "--samples", 720)
    assert out.read_bytes() != first


def test_gutenberg_writes_the_books_and_says_what_it_left_out(tmp_path):
    folder, out = tmp_path / "books", tmp_path / "books.jsonl"
    folder.mkdir()
    for name, text in (("a-tale", "It rained."), ("b-tale", "It  rained."), ("c-tale", "It\r\nsnowed.")):
        (folder / f"{name}.txt").write_text(BOOK.format(title=name.replace("-", " "), text=text))
    result = kssm("data", "gutenberg", folder, out)
    assert result.exit_code == 0 and f"written: {out}, 2 books, 1 left out" in result.stdout
    assert "b-tale.txt" in result.stdout and "a-tale.txt has the same text" in result.stdout
    first = json.loads(out.read_text().splitlines()[0])
    assert first == {"text": "It rained.", "title": "a tale", "id": None, "file": "a-tale.txt"}
    assert open_corpus(f"jsonl:{out}").digest == open_corpus(f"gutenberg:{folder}").digest


def test_wikitext_writes_the_articles(tmp_path):
    path, out = tmp_path / "wiki.train.raw", tmp_path / "wiki.jsonl"
    path.write_text("\n = A = \n\n one @-@ two \n\n = B = \n\n three \n")
    result = kssm("data", "wikitext", path, out, "--join-markers")
    assert result.exit_code == 0 and result.stdout == f"written: {out}, 2 articles\n"
    assert json.loads(out.read_text().splitlines()[0]) == {"text": "= A =\none-two", "title": "A"}
    assert open_corpus(f"jsonl:{out}").digest == open_corpus(f"wikitext-joined:{path}").digest


def test_a_bpe_is_written_as_recipes_read_it(tmp_path):
    out = tmp_path / "bpe.json"
    result = kssm("data", "bpe", "themes", out, "--vocab", 700)
    tokenizer = make_tokenizer(f"hf:{out}")
    assert result.exit_code == 0 and tokenizer.vocab_size == 700
    assert result.stdout == f"written: {out}, 700 tokens, digest {tokenizer.digest[:12]}\n"


@pytest.mark.parametrize("kind", ["file", "jsonl"])
def test_a_bpe_of_a_text_that_is_not_read_at_once_is_the_same(kind, tmp_path, monkeypatch):
    path, out = tmp_path / "text", tmp_path / "bpe.json"
    texts = [sample.text for sample in themed_samples(0, 720)]
    lines = [json.dumps({"text": text}) if kind == "jsonl" else text for text in texts]
    path.write_text("\n".join(lines) + "\n")
    at_once = kssm("data", "bpe", f"{kind}:{path}", out, "--vocab", 600)
    written = out.read_bytes()
    for module, name, value in ((documents, "LARGE", 0), (documents, "BLOCK", 5000), (cuts, "PIECE", 3000)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sources, "read_text", lambda path: pytest.fail("read at once"))
    streamed = kssm("data", "bpe", f"{kind}:{path}", out, "--vocab", 600)
    assert streamed.exit_code == 0 and streamed.stdout == at_once.stdout and out.read_bytes() == written


def test_describe_counts_and_finds_what_is_there_twice(tmp_path):
    path, long = (
        tmp_path / "a.jsonl",
        "a paragraph that is long enough to be counted as one and the same text",
    )
    texts = ["one \ufffd", "one \ufffd", long, f"first\n\n{long.upper()}!"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    result = kssm("data", "describe", f"jsonl:{path}", "--tokenizer", "chars")
    said = {row[:40].strip(): row[40:].split() for row in result.stdout.splitlines()}
    characters = sum(map(len, texts))
    assert said["documents"] == ["4"] and said["documents equal to an earlier one"] == ["1"]
    assert said["characters"] == said["tokens, without separators"] == [str(characters)]
    assert said["bytes"] == [str(characters + 4)]
    assert said["long paragraphs of an earlier document"] == ["50.000%"]
    assert said["share of U+FFFD"] == [f"{2 / characters:.1e}"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "missing command"),
        (["synthetic-themes", "{}/a.jsonl", "--samples", 0], "--samples"),
        (["synthetic-themes", "{}"], "cannot write"),
        (["synthetic-themes", "{}/a.txt/b.jsonl"], "cannot write"),
        (["gutenberg", "{}", "{}/out"], "a.txt has no START marker"),
        (["gutenberg", "{}/nowhere", "{}/out"], "nowhere does not exist"),
        (["wikitext", "{}/a.txt", "{}/out"], "has no article"),
        (["wikitext", "{}", "{}/out"], "is a directory"),
        (["bpe", "file:{}/a.txt", "{}/out"], "the text has only 265 of 16384 tokens"),
        (["describe", "flie:{}/a.txt"], "did you mean 'file:"),
        (["describe", "themes", "--tokenizer", "cl100k:{}/a.txt"], "is not a Hugging Face tokenizer.json"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_and_leaves_no_file(tmp_path, arguments, message):
    (tmp_path / "a.txt").write_text("just a text")
    assert message in refused(kssm("data", *(str(a).format(tmp_path) for a in arguments)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
