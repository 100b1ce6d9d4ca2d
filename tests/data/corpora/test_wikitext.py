"""Fake raw WikiText files: articles, markers, the official split and what is not raw WikiText."""

import pytest

from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.corpora.wikitext import read_articles, read_splits
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.splits import split_corpus
from kssm_mlx.errors import ConfigError, DataError
from tests.support.text_fakes import DataSection

ROBERT = [
    " = Robert Boulter = ",
    " ",
    " Robert Boulter is an English film @-@ actor , born in 1980 , who earned 1 @,@ 200 @.@ 5 pounds . ",
    " ",
    " = = Career = = ",
    " ",
    " = = = 2000 – present = = = ",
    " ",
    " He had a guest role . ",
    " = not a title = ",
    " ",
]


def article(title, words="something else entirely"):
    return [f" = {title} = ", " ", f" {title} is {words} of which nothing more is known . ", " "]


def write(path, *parts):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([" ", *(line for part in parts for line in part), ""]), "utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """Five articles to train on, one of which is also one of the two that are held out."""
    train = [article(f"Article {i}") for i in range(4)]
    write(tmp_path / "wiki" / "wiki.train.raw", ROBERT, *train)
    write(tmp_path / "wiki" / "wiki.valid.raw", article("Held Out", "a test"), article("Article 2"))
    return tmp_path / "wiki"


def test_a_heading_opens_an_article_and_sections_stay(tmp_path):
    found = read_articles(write(tmp_path / "a.raw", ROBERT, article("Du Fu")))
    assert [a.title for a in found] == ["Robert Boulter", "Du Fu"]
    assert found[0].text.split("\n") == [line.strip() for line in ROBERT if line.strip()]
    assert found[1].text == "= Du Fu =\nDu Fu is something else entirely of which nothing more is known ."


def test_markers_stay_unless_joining_is_declared(tmp_path):
    path = write(tmp_path / "a.raw", ROBERT)
    (kept,), (joined,) = (open_corpus(f"{kind}:{path}").documents for kind in ("wikitext", "wikitext-joined"))
    assert "film @-@ actor , born" in kept and "1 @,@ 200 @.@ 5" in kept
    assert "film-actor , born" in joined and "earned 1,200.5 pounds" in joined
    assert kept != joined and kept.replace(" @-@ ", "-").count("@") == 4


def test_an_article_is_there_once_and_an_empty_one_not(tmp_path):
    path = write(tmp_path / "a.raw", article("One"), [" = Nothing = ", " "], article("Two"), article("One"))
    assert [a.title for a in read_articles(path)] == ["One", "Two"]


def test_the_official_split_is_kept_and_shares_nothing(folder, tmp_path):
    train, validation = read_splits(folder)
    assert [a.title for a in validation] == ["Held Out", "Article 2"]
    assert [a.title for a in train] == ["Robert Boulter", "Article 0", "Article 1", "Article 3"]
    data = prepare(DataSection(f"wikitext:{folder}", "chars"), tmp_path / "data")
    separator, *texts = data.tokenizer.decode(data.validation.ids).split("\0")
    assert (separator, texts) == ("", [a.text for a in validation])
    assert data.tokenizer.decode(data.train.ids).split("\0")[1:] == [a.text for a in train]
    held_out, rest = (sum(len(a.text) for a in side) for side in (validation, train))
    assert data.index["split"] == {
        "method": "official",
        "validation": held_out / (held_out + rest),
        "seed": 0,
    }
    assert (data.index["corpus"]["documents"], data.index["corpus"]["licence"]) == (6, "CC-BY-SA-3.0")


def test_a_model_from_elsewhere_is_scored_on_the_official_validation(folder):
    from kssm_mlx.data.tokenizers.plain import ByteTokenizer
    from kssm_mlx.runner.evaluate import _read_foreign

    split = _read_foreign(f"wikitext:{folder}", ByteTokenizer(), special_tokens=False, most=None)
    text = "".join("\0" + a.text for a in read_splits(folder)[1])
    assert ByteTokenizer().decode(split.ids) == text
    one = open_corpus(f"wikitext:{folder / 'wiki.train.raw'}")
    assert one.scored == one.documents


def test_the_digest_names_both_sides(folder):
    before = open_corpus(f"wikitext:{folder}").digest
    write(folder / "wiki.valid.raw", article("Another", "a test"))
    assert open_corpus(f"wikitext:{folder}").digest != before


def test_another_split_of_a_split_corpus_is_refused_and_of_a_file_it_is_by_articles(folder):
    with pytest.raises(
        ConfigError, match=r"data\.split is 'documents', but .* comes with its own validation"
    ):
        split_corpus(open_corpus(f"wikitext:{folder}"), "documents", 0.1, 0)
    one = open_corpus(f"wikitext:{folder / 'wiki.train.raw'}")
    (train, validation), method, share = split_corpus(one, "auto", 0.3, 0)
    assert (method, share) == ("documents", 0.3) and sorted(train + validation) == sorted(one.documents)


def test_a_folder_without_both_files_is_refused(folder):
    (folder / "wiki.valid.raw").unlink()
    with pytest.raises(DataError, match=r"has no wiki\.valid\.raw; a folder gives the official split"):
        open_corpus(f"wikitext:{folder}")


@pytest.mark.parametrize(
    "text, message",
    [
        ("just text\n", "has no article: expected headings such as ' = Robert Boulter = '"),
        ("\n = A = \n\n the <unk> of <unk> \n", "has 2 <unk>: this is the tokenised WikiText"),
        ("\n = A = \n\n wrong\ufffd \n", r"1 of \d+ characters are U\+FFFD"),
    ],
)
def test_what_is_no_raw_wikitext_is_refused(tmp_path, text, message):
    (tmp_path / "a.raw").write_text(text, "utf-8")
    with pytest.raises(DataError, match=message):
        open_corpus(f"wikitext:{tmp_path / 'a.raw'}")
