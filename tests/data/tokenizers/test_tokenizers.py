import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.data.tokenizers.factory import load_tokenizer, make_tokenizer
from kssm_mlx.data.tokenizers.hf_backend import HFTokenizer
from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.data.tokenizers.streaming import StreamDecoder
from kssm_mlx.errors import ConfigError, DataError

# Any text but lone surrogates, which no file can hold.
UNICODE = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def backend():
    """A byte-level BPE tokenizer, trained here on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the phases lock, the phases drift"] * 5, trainer)
    return tokenizer


def word_backend():
    """Words with the leading space as a mark, whose decoder drops the first one: the awkward case."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "▁in": 1, "▁phase": 2, "▁": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


BPE = HFTokenizer(backend().to_str(), "hf:test")
EVERY = [ByteTokenizer(), CharTokenizer("\0 abé€😀"), BPE]


@given(UNICODE)
def test_bytes_round_trip(text):
    ids = ByteTokenizer().encode(text)
    assert ids.dtype == np.int32 and ByteTokenizer().decode(ids) == text
    assert len(ids) == len(text.encode())


@given(UNICODE)
def test_hf_round_trip(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text and (ids < BPE.vocab_size).all()


@given(st.lists(UNICODE, min_size=1, max_size=4))
def test_chars_round_trip(documents):
    tokenizer = CharTokenizer.from_documents(documents)
    for text in documents:
        ids = tokenizer.encode(text)
        assert len(ids) == len(text) and tokenizer.decode(ids) == text


def test_chars_are_sorted_and_have_a_separator_only_between_documents():
    one, two = CharTokenizer.from_documents(["banana"]), CharTokenizer.from_documents(["ban", "ana"])
    assert (one.characters, one.vocab_size, one.separator_id) == ("abn", 3, None)
    assert (two.characters, two.vocab_size, two.separator_id) == ("\0abn", 4, 0)


def test_an_unknown_character_is_named():
    with pytest.raises(DataError, match=r"character 'é' at position 2 is not among the 3 characters"):
        CharTokenizer("abn").encode("abé")
    with pytest.raises(DataError, match=r"character 'a' at position 0"):
        CharTokenizer("bc").encode("a")


@pytest.mark.parametrize("tokenizer", EVERY, ids=lambda t: t.name)
def test_half_a_surrogate_and_foreign_ids_are_refused(tokenizer):
    with pytest.raises(DataError, match="half a surrogate pair at position 1"):
        tokenizer.encode("a\ud800")
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(DataError, match=f"token id {bad} is not in the vocabulary 0.."):
            tokenizer.decode([0, bad])


@pytest.mark.parametrize("tokenizer", EVERY, ids=lambda t: t.name)
def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    for field in ("name", "vocab_size", "separator_id", "digest"):
        assert getattr(loaded, field) == getattr(tokenizer, field)
    assert loaded.encode("ab é€😀").tolist() == tokenizer.encode("ab é€😀").tolist()


def test_digests_tell_tokenizers_apart_and_not_their_names():
    digests = [*(t.digest for t in EVERY), CharTokenizer("ab").digest]
    assert len(set(digests)) == len(digests)
    assert HFTokenizer(backend().to_str(), "hf:elsewhere").digest == BPE.digest


def test_a_changed_tokenizer_file_is_refused(tmp_path):
    CharTokenizer("abc").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"abc"', '"abd"'))
    with pytest.raises(DataError, match=r"tokenizer\.json was changed: its content has digest"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot read the tokenizer .*: no such file"),
        ("{", "is not JSON"),
        ("[]", "is no tokenizer of ours"),
        ('{"format": "other"}', "is no tokenizer of ours"),
        ('{"format": "kssm-tokenizer/1"}', "is incomplete"),
        ('{"model": {}}', "is not a Hugging Face tokenizer.json"),
    ],
)
def test_a_broken_tokenizer_file_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_hf_from_a_file_and_from_a_folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text(backend().to_str())
    for target in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = make_tokenizer(f"hf:{target}")
        assert tokenizer.separator_id == backend().token_to_id("<|endoftext|>")
        assert tokenizer.digest == BPE.digest
    assert load_tokenizer(tmp_path).digest == BPE.digest  # also without our wrapping


def test_hf_does_not_cut_or_pad_documents(tmp_path):
    cutting = backend()
    cutting.enable_truncation(4)
    cutting.enable_padding(length=8)
    assert len(cutting.encode("the phases lock, and drift").ids) == 8
    assert HFTokenizer(cutting.to_str(), "hf:cut").decode(BPE.encode("the phases lock")) == "the phases lock"
    for text in ("the phases lock, and drift", "a"):
        assert HFTokenizer(cutting.to_str(), "hf:cut").encode(text).tolist() == BPE.encode(text).tolist()


def test_hf_vocabulary_counts_added_tokens_and_gaps():
    content = json.loads(backend().to_str())
    last = max(content["model"]["vocab"].values())
    content["added_tokens"].append({**content["added_tokens"][0], "id": last + 1, "content": "<|user|>"})
    assert HFTokenizer(json.dumps(content), "hf:more").vocab_size == last + 2


def test_a_repository_that_cannot_be_had_is_refused(monkeypatch, capsys):
    import logging

    import huggingface_hub

    def offline(repo, name):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise huggingface_hub.errors.LocalEntryNotFoundError(f"cannot find {name} in the cache\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        DataError, match=r"no tokenizer 'owner/name': .* cannot find tokenizer.json in the cache$"
    ):
        make_tokenizer("hf:owner/name")
    assert capsys.readouterr().err == ""


def test_a_missing_path_is_not_asked_of_the_hub():
    with pytest.raises(DataError, match=r"cannot read the tokenizer nowhere/tokenizer\.json: no such file"):
        make_tokenizer("hf:./nowhere/tokenizer.json")


@pytest.mark.parametrize(
    "spec, message",
    [("byte", "did you mean 'bytes'"), ("hf:", "expected bytes, chars, chars-reserved, bpe:")],
)
def test_an_unknown_tokenizer_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_tokenizer(spec)


def test_chars_need_a_corpus():
    with pytest.raises(ConfigError, match="'chars' is built from a corpus"):
        make_tokenizer("chars")


def streamed(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(i) for i in ids), decoder.finish()]


@given(st.lists(st.integers(0, 255)))
def test_streamed_bytes_join_to_the_whole_even_where_they_are_no_text(ids):
    assert "".join(streamed(ByteTokenizer(), ids)) == ByteTokenizer().decode(ids)


@given(UNICODE)
def test_streamed_text_is_complete_at_every_step(text):
    for tokenizer in (ByteTokenizer(), BPE):
        pieces = streamed(tokenizer, tokenizer.encode(text))
        assert "".join(pieces) == text
        assert "�" in text or not any("�" in piece for piece in pieces)


def test_a_character_appears_with_its_last_byte():
    assert streamed(ByteTokenizer(), "a€".encode()) == ["a", "", "", "€", ""]
    assert streamed(ByteTokenizer(), "a€".encode()[:-1]) == ["a", "", "", "�"]


def test_streaming_keeps_spaces_that_a_decoder_drops_at_the_start():
    tokenizer = HFTokenizer(word_backend().to_str(), "hf:words")
    ids = tokenizer.encode("in phase in")
    assert streamed(tokenizer, ids) == ["in", " phase", " in", ""]
