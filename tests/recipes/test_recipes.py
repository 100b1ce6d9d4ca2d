"""Every shipped recipe can be read, says what it asks, and becomes a model."""

import re
import tomllib

import pytest

from kssm_mlx.models import configure
from kssm_mlx.training.recipe import load, parse_override, shipped

RECIPES = shipped()
every_recipe = pytest.mark.parametrize("name", RECIPES)


def header(name: str) -> list[str]:
    """The comment lines a recipe begins with."""
    lines = RECIPES[name].read_text("utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:end]]


def test_there_are_recipes():
    assert {"default", "tinyshakespeare"} <= RECIPES.keys()


@every_recipe
def test_the_header_asks_and_tells(name):
    first, *rest = header(name)
    assert first.endswith("?"), "the first line is the question"
    text = " ".join(rest)
    assert f"kssm train {name}" in text and "Hardware:" in text and "Expected:" in text


@every_recipe
def test_the_table_says_what_the_header_says(name):
    about, first = load(name).about, header(name)[0]
    assert about.question and first.startswith(about.question.rstrip("?"))
    assert about.hardware


@every_recipe
def test_it_becomes_a_model(name):
    recipe = load(name)
    config = configure(
        recipe.model.family,
        recipe.model.size,
        vocab_size=65,
        context=recipe.train.context,
        overrides=recipe.model.overrides,
    )
    assert config.model_type == recipe.model.family


@every_recipe
def test_nothing_of_one_machine(name):
    """A source is a name or a relative path: the reader has another home."""
    assert not re.search(r"(file|dir|jsonl):[/~]|/home/|/Users/", RECIPES[name].read_text("utf-8"))


@every_recipe
def test_every_key_is_one_of_the_file(name):
    """What is read back holds what was written."""
    table, recipe = tomllib.loads(RECIPES[name].read_text("utf-8")), load(name).model_dump()
    for section, values in table.items():
        for key, value in values.items():
            assert recipe[section][key] == value, f"{section}.{key}"


@pytest.mark.parametrize("text, kappa", [("model.kappa=0", 0), ("model.kappa=0.5", 0.5)])
def test_one_word_makes_the_control(text, kappa):
    plain = load("tinyshakespeare")
    control = load("tinyshakespeare", dict([parse_override(text)]))
    overrides = control.model.overrides
    assert configure("kssm", "s", vocab_size=65, overrides=overrides).kappa == kappa
    assert plain.model_dump(exclude={"model": {"kappa"}}) == control.model_dump(exclude={"model": {"kappa"}})
