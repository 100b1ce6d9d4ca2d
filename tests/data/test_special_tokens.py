"""Text is text: a special token in a document is its characters, unless the recipe says otherwise."""

import pytest

from kssm_mlx.data.tokens import prepare
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.recipe_sections import Data

TEXT = "how to write <|endoftext|> in a text, again and again. "


def prepared(tmp_path, name, **options):
    source = tmp_path / "text.txt"
    source.write_text(TEXT * 300)
    section = Data(source=f"file:{source}", tokenizer="bpe:280", split="contiguous", **options)
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


def test_data_of_the_other_kind_is_not_taken_for_it(tmp_path):
    first = separators(prepared(tmp_path, "data"))
    assert separators(prepared(tmp_path, "data", special_tokens=True)) > first
    assert separators(prepared(tmp_path, "data")) == first


@pytest.mark.parametrize("value", ["true", "false"])
def test_the_key_of_the_recipe(value):
    made = recipes.load("default", {"data.special_tokens": value == "true"})
    assert made.data.special_tokens is (value == "true")
