"""Tokenizers that are built from a corpus: a BPE of the training side, characters behind reserved ids."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.splits import split_corpus
from kssm_mlx.data.tokenizers.bpe import train_bpe
from kssm_mlx.data.tokenizers.control_chars import CONTROL, RESERVED, ControlCharTokenizer
from kssm_mlx.data.tokenizers.factory import load_tokenizer, make_tokenizer
from kssm_mlx.data.tokenizers.huggingface import match_own_tokenizer, tokenizer_files
from kssm_mlx.errors import ConfigError, DataError
from tests.support.text_fakes import DataSection

IDS = {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "system": 4, "user": 5, "assistant": 6, "endofturn": 7}
UNICODE = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def test_every_control_token_is_one_id():
    """Also inside text, and with the ids of docs/background/hybrids.md#control-tokens."""
    tokenizer = ControlCharTokenizer("<>abc|")
    for name, id in IDS.items():
        assert tokenizer.encode_prompt(f"<|{name}|>").tolist() == [id]
        assert tokenizer.decode([id]) == f"<|{name}|>"
    assert tokenizer.encode_special("<|user|>ab<|endofturn|>").tolist() == [5, 34, 35, 7]
    assert tokenizer.encode_special("<|user|").tolist() == [32, 37, 1, 1, 1, 1, 37]  # not whole: characters
    assert tokenizer.encode("<|user|>").tolist() == [32, 37, 1, 1, 1, 1, 37, 33]  # a document is text
    assert len(CONTROL) == 8 and RESERVED == 32


def test_characters_begin_at_32_and_reserved_ids_say_nothing():
    tokenizer = ControlCharTokenizer.from_documents(["ba", "<|bos|>cé"], special_tokens=True)
    assert (tokenizer.characters, tokenizer.vocab_size, tokenizer.separator_id) == ("abcé", 36, 3)
    assert tokenizer.encode("aé").tolist() == [32, 35] and tokenizer.encode("x").tolist() == [1]
    assert tokenizer.decode([8, 32, 31]) == "a" and tokenizer.encode("").tolist() == []


@given(st.lists(UNICODE, min_size=1, max_size=3))
def test_reserved_characters_round_trip(documents):
    tokenizer = ControlCharTokenizer.from_documents(documents)
    for text in documents:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and tokenizer.decode(ids) == text and 1 not in ids


def test_tinyshakespeare_has_the_published_97_tokens(shared_text):
    assert make_tokenizer("chars-reserved", [shared_text.read_text("utf-8")]).vocab_size == 97


def test_reserved_characters_are_saved_and_open_documents_with_eos(tmp_path):
    data = prepare(DataSection("themes:samples=40", "chars-reserved"), tmp_path / "data")
    assert (data.train.ids[data.train.starts] == 3).all() and (
        data.train.ids == 3
    ).sum() == data.train.starts.size
    assert set(np.unique(data.train.ids)) & set(range(32)) == {3}
    assert load_tokenizer(data.folder).digest == data.tokenizer.digest


def test_what_only_resembles_an_export_of_reserved_characters_is_not_taken_for_one():
    table = json.loads(tokenizer_files(ControlCharTokenizer("ab"))["tokenizer.json"])
    assert match_own_tokenizer(table).digest == ControlCharTokenizer("ab").digest
    table["model"]["vocab"]["a"] = 99
    assert match_own_tokenizer(table) is None


def test_a_bpe_is_the_same_every_time_and_round_trips():
    documents = open_corpus("themes").documents
    one, two = train_bpe(documents, 1000), train_bpe(list(documents), 1000)
    assert one.digest == two.digest and (one.vocab_size, one.separator_id) == (1000, 0)
    text = "The tide, naïve and 12 €😀\n\tkept its own calendar."
    assert one.decode(one.encode(text)) == text
    assert sum(one.encode(d).size for d in documents) < 0.4 * sum(map(len, documents))


def test_a_recipe_s_bpe_learns_from_the_training_side_only(tmp_path):
    section = DataSection("themes:samples=200", "bpe:600")
    data = prepare(section, tmp_path / "data")
    corpus = open_corpus(section.source)
    (train, _), *_ = split_corpus(corpus, "auto", section.validation, section.seed)
    assert data.tokenizer.digest == train_bpe(train, 600).digest != train_bpe(corpus.documents, 600).digest
    assert data.vocab_size == 600 and data.train.ids.max() < 600
    assert load_tokenizer(data.folder).digest == data.tokenizer.digest
    written = (data.folder / "train.bin").stat().st_mtime_ns
    assert (prepare(section, data.folder).folder / "train.bin").stat().st_mtime_ns == written


def test_a_bpe_that_cannot_be_had_is_refused():
    with pytest.raises(DataError, match=r"the text has only \d+ of 16384 tokens in it; give more text"):
        train_bpe(open_corpus("themes:samples=50").documents)
    with pytest.raises(ConfigError, match="a BPE of 256 tokens; expected 257"):
        train_bpe(["text"], 256)


@pytest.mark.parametrize("spec", ["chars-reserved", "bpe:300"])
def test_both_need_a_corpus(spec):
    with pytest.raises(ConfigError, match=f"tokenizer '{spec}' is built from a corpus"):
        make_tokenizer(spec)


def test_a_text_without_spaces_is_learned_in_pieces_and_said(capsys):
    """A line of DNA is one word to the trainer, whose time goes with the square of its length."""
    dna = "".join(np.random.default_rng(0).choice(list("ACGT"), 60_000))
    tokenizer = train_bpe([dna], 300)
    assert "bpe: 1 word(s) longer than 512 characters were learned in pieces" in capsys.readouterr().err
    assert tokenizer.decode(tokenizer.encode(dna[:5000])) == dna[:5000]
    assert tokenizer.encode(dna[:5000]).size < 3000


def test_ordinary_text_is_learned_as_before(capsys):
    text = "the cat sat on the mat, and the dog on the log. " * 20
    whole = train_bpe([text], 270)
    assert capsys.readouterr().err == ""
    train_bpe([text + "x" * 511], 270)
    assert capsys.readouterr().err == ""
    assert whole.decode(whole.encode(text)) == text
