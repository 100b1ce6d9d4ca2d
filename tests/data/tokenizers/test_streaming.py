"""Text as it comes is the text of all tokens: for every kind of tokenizer, in one go and in two."""

import functools
import json
import random

import numpy as np
import pytest
from tokenizers.decoders import DecodeStream

from kssm_mlx.data.tokenizers.hf_backend import HFTokenizer
from kssm_mlx.data.tokenizers.streaming import StreamDecoder
from kssm_mlx.errors import DataError
from tests.support.streaming import count_differences, joined
from tests.support.tokenizer_kinds import KINDS, llama, random_text


@functools.cache
def kind(name):
    return KINDS[name]()


@pytest.mark.parametrize("name", KINDS)
def test_text_as_it_comes_is_what_the_library_decodes(name):
    """In one go, from the tail of another decoder, and behind a prompt."""
    assert not any(count_differences(kind(name), 200, seed=0).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_text_as_it_comes_is_what_the_library_decodes_3000_times(name):
    assert not any(count_differences(kind(name), 3000, seed=1).values())


def test_a_difference_is_counted(monkeypatch):
    monkeypatch.setattr(StreamDecoder, "finish", lambda self: "!")
    assert count_differences(kind("bytes"), 5, seed=0) == dict.fromkeys(
        ("texts", "id lists", "cut in two", "behind a prompt"), 5
    )


@pytest.mark.parametrize("name", [name for name in KINDS if isinstance(KINDS[name](), HFTokenizer)])
def test_texts_stream_as_the_library_streams_them(name):
    tokenizer, rng = kind(name), random.Random(5)
    for _ in range(200):
        ids = tokenizer.encode(random_text(rng)).tolist()
        ours, theirs = StreamDecoder(tokenizer), DecodeStream(skip_special_tokens=False)
        text = "".join(theirs.step(tokenizer.backend, id) or "" for id in ids)
        whole = joined(ours, ids) + ours.finish()
        assert whole.startswith(text)  # the library keeps an incomplete end to itself


def test_chinese_in_single_bytes():
    tokenizer = llama()
    ids = tokenizer.encode("中文").tolist()
    decoder = StreamDecoder(tokenizer)
    assert joined(decoder, ids) + decoder.finish() == "中文" == tokenizer.decode(ids)


def test_the_first_word_behind_a_prompt_keeps_its_space():
    tokenizer = llama()
    the = tokenizer.backend.token_to_id("▁the")
    assert StreamDecoder.after(tokenizer, tokenizer.encode("hello")).push(the) == " the"
    assert StreamDecoder(tokenizer).push(the) == "the"


def test_a_document_may_speak_of_special_tokens():
    tokenizer = kind("byte level")
    end = tokenizer.separator_id
    text = "how <|endoftext|> is written"
    assert end not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    assert end in tokenizer.encode_special(text) and end in tokenizer.encode_prompt(text)
    assert end not in tokenizer.encode(text)  # whatever was asked for before


@pytest.mark.parametrize("name", ["llama", "word piece"])
def test_prompts_have_what_the_post_processor_adds_once(name):
    tokenizer = kind(name)
    theirs = tokenizer.backend.encode("the cat", add_special_tokens=True).ids
    assert tokenizer.encode_prompt("the cat").tolist() == theirs != tokenizer.encode("the cat").tolist()
    assert tokenizer.encode_prompt("").tolist() == tokenizer.backend.encode("").ids
    begin, end = ("<s>", "") if name == "llama" else ("[CLS] ", " [SEP]")
    again = tokenizer.encode_prompt(f"{begin}the cat{end}").tolist()
    assert again == tokenizer.encode_special(f"{begin}the cat{end}").tolist()
    assert [again.count(id) for id in {theirs[0], theirs[-1]}] == [1] * len({theirs[0], theirs[-1]})


def test_prompts_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = kind("llama")
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    rng = random.Random(6)
    for _ in range(50):
        text = random_text(rng)
        assert tokenizer.encode_prompt(text).tolist() == theirs(text)["input_ids"]


def test_a_run_is_prompted_as_it_was_trained(tmp_path):
    """Its documents had no <s>, so its prompts have none."""
    from kssm_mlx.data.tokenizers.factory import load_tokenizer

    kind("llama").save(tmp_path)
    kept = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(kept.encode_prompt("the"), kept.encode("the"))
    assert kept.digest == kind("llama").digest


@pytest.mark.parametrize("model", ["WordLevel", "Unigram"])
def test_a_word_that_has_no_token_is_one_line(model):
    from tokenizers import Tokenizer, models

    made = models.WordLevel({"a": 0}, "[UNK]") if model == "WordLevel" else models.Unigram([("a", 0.0)])
    with pytest.raises(DataError, match="small cannot be used on this text") as refused:
        HFTokenizer(Tokenizer(made).to_str(), "small").encode("zzz")
    assert "\n" not in str(refused.value)


def _with(**changes):
    table = json.loads(kind("word level").backend.to_str())
    table["model"] |= changes
    return json.dumps(table)


@pytest.mark.parametrize(
    "content",
    [
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        _with(vocab={}),
        _with(vocab={"[UNK]": 0, "a": 1 << 31}),
        _with(vocab={"[UNK]": 0, "a": 1 << 24}),
        _with(type="Nothing"),
        _with(vocab={"[UNK]": -1}),
        "[]",
        "null",
        "",
        "[" * 100_000,
    ],
)
def test_a_tokenizer_that_cannot_be_is_one_line(content):
    with pytest.raises(DataError) as refused:
        HFTokenizer(content, "x")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
