"""Text is text: a special token in a document is its characters, unless the recipe says otherwise."""

import numpy as np
import pytest

from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.recipe_sections import Data

TEXT = "how to write <|endoftext|> in a text, again and again. "


def prepared(tmp_path, name, tokenizer="bpe:280", text=TEXT, **options):
    source = tmp_path / "text.txt"
    source.write_text(text * 300)
    section = Data(source=f"file:{source}", tokenizer=tokenizer, split="contiguous", **options)
    return prepare(section, tmp_path / name)


def separators(data):
    return sum(int((side.ids == data.tokenizer.separator_id).sum()) for side in (data.train, data.validation))


def test_a_text_may_speak_of_the_separator(tmp_path):
    """37 separators in one document, and no reset there: the model read across ends that were none."""
    data = prepared(tmp_path, "data")
    assert separators(data) == len(data.train.starts) + len(data.validation.starts)
    assert "<|endoftext|>" in data.tokenizer.decode(data.train.ids[1:])


def test_a_recipe_can_allow_them(tmp_path):
    plain, special = prepared(tmp_path, "a"), prepared(tmp_path, "b", special_tokens=True)
    assert separators(special) > 300 > separators(plain)
    assert plain.tokenizer.digest == special.tokenizer.digest


def test_characters_behind_reserved_ids_ask_the_recipe_too(tmp_path):
    """They took every control token in a text for one, whatever `data.special_tokens` said."""
    text = "<|user|> asks <|assistant|> answers <|endofturn|> "
    plain = prepared(tmp_path, "a", "chars-reserved", text)
    special = prepared(tmp_path, "b", "chars-reserved", text, special_tokens=True)
    control = [5, 6, 7]
    assert not np.isin(plain.train.ids, control).any() and np.isin(special.train.ids, control).sum() > 500
    assert set("<|>") <= set(plain.tokenizer.characters) and not set("<|>") & set(
        special.tokenizer.characters
    )
    assert plain.tokenizer.encode_prompt("<|user|>").tolist() == [5]


def test_data_of_the_other_kind_is_not_taken_for_it(tmp_path):
    first = separators(prepared(tmp_path, "data"))
    assert separators(prepared(tmp_path, "data", special_tokens=True)) > first
    assert separators(prepared(tmp_path, "data")) == first


@pytest.mark.parametrize("value", ["true", "false"])
def test_the_key_of_the_recipe(value):
    made = recipes.load("default", {"data.special_tokens": value == "true"})
    assert made.data.special_tokens is (value == "true")
