"""Our tokenizers as Hugging Face files: the same ids in transformers, and ours again when read back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.data.tokenizers.control_chars import ControlCharTokenizer
from kssm_mlx.data.tokenizers.factory import load_tokenizer, make_tokenizer
from kssm_mlx.data.tokenizers.huggingface import match_own_tokenizer, tokenizer_files
from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.data.tokenizers.rwkv_world import WorldTokenizer
from kssm_mlx.errors import DataError
from tests.support.tokenizer_kinds import byte_level, llama, word_piece

TEXT = "a ,b é €\nĀ ĢĠ <s>  x𝄞 "
TOKENIZERS = {
    "bytes": ByteTokenizer(),
    "chars": CharTokenizer.from_documents([TEXT]),
    "chars with separator": CharTokenizer.from_documents([TEXT, "c"]),
    "chars behind reserved ids": ControlCharTokenizer.from_documents([TEXT]),
}


def written(tokenizer, folder):
    for name, content in tokenizer_files(tokenizer).items():
        (folder / name).write_text(content)
    return folder


def in_transformers(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_transformers_gives_the_same_ids_and_text(name, tmp_path):
    tokenizer = TOKENIZERS[name]
    theirs = in_transformers(written(tokenizer, tmp_path))
    assert theirs.encode(TEXT) == tokenizer.encode(TEXT).tolist()
    assert theirs.decode(tokenizer.encode(TEXT).tolist()) == TEXT
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.separator_id


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_becomes_its_bytes(text):
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer_files(ByteTokenizer())["tokenizer.json"])
    ids = backend.encode(text, add_special_tokens=False).ids
    assert ids == list(text.encode())
    assert backend.decode(ids, skip_special_tokens=False) == text


def test_broken_utf8_decodes_as_ours_does(tmp_path):
    theirs, broken = in_transformers(written(ByteTokenizer(), tmp_path)), [65, 0xE2, 0x82, 66]
    assert theirs.decode(broken) == ByteTokenizer().decode(broken)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_was_exported_is_read_back_as_ours(name, tmp_path):
    assert load_tokenizer(written(TOKENIZERS[name], tmp_path)).digest == TOKENIZERS[name].digest
    assert make_tokenizer(f"hf:{tmp_path}").digest == TOKENIZERS[name].digest


@pytest.mark.parametrize("name", TOKENIZERS)
def test_also_after_transformers_has_saved_it(name, tmp_path):
    theirs = in_transformers(written(TOKENIZERS[name], tmp_path))
    theirs.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").digest == TOKENIZERS[name].digest


def test_a_foreign_tokenizer_is_none_of_ours_and_is_written_as_it_was(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "word": 1}, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = make_tokenizer(f"hf:{tmp_path}")
    files = tokenizer_files(tokenizer)
    assert match_own_tokenizer(json.loads(files["tokenizer.json"])) is None
    assert json.loads(files["tokenizer.json"]) == json.loads(backend.to_str())
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|endoftext|>"


@pytest.mark.parametrize("kind", [llama, word_piece, byte_level])
def test_the_export_of_a_run_prompts_as_the_run_does(kind, tmp_path):
    """transformers put <s> in front of a prompt of a model that had never seen one."""
    for folder in ("run", "export"):
        (tmp_path / folder).mkdir()
    made = kind()
    made.save(tmp_path / "run")
    of_the_run = load_tokenizer(tmp_path / "run")
    theirs = in_transformers(written(of_the_run, tmp_path / "export"))
    for text in ("the cat", "", "hello there"):
        assert theirs.encode(text) == of_the_run.encode_prompt(text).tolist()
        assert load_tokenizer(tmp_path / "export").encode_prompt(text).tolist() == theirs.encode(text)
    assert of_the_run.digest == made.digest


@pytest.mark.parametrize(
    "change", [{"merges": [["a", "b"]]}, {"vocab": {"a": 1, "b": 0}}, {"type": "Unigram"}]
)
def test_a_tokenizer_that_only_resembles_ours_is_not_taken_for_it(change):
    table = json.loads(tokenizer_files(CharTokenizer("ab"))["tokenizer.json"])
    assert match_own_tokenizer(table).digest == CharTokenizer("ab").digest
    table["model"] |= change
    assert match_own_tokenizer(table) is None


def test_a_tokenizer_that_their_files_cannot_describe_is_refused():
    world = WorldTokenizer({i + 1: bytes([i]) for i in range(256)} | {300: b"the "}, "world:test")
    with pytest.raises(DataError, match=r"cannot describe world:test; export without"):
        tokenizer_files(world)
