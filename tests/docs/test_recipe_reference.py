"""docs/reference/recipe.md: up to date, with a meaning for every key, and the keys that recipes have."""

import dataclasses
import re

import pytest

from kssm_mlx.oscillators.zones import PROFILES, TARGETS
from kssm_mlx.training.recipe import Recipe, list_failures, list_shipped, load
from tests.docs.meanings import MEANINGS
from tests.docs.recipe_reference import PAGE, SECTIONS, explained, render, words

ROW = re.compile(r"^\| `(\w+)` \|.*\| (.*) \|$", re.MULTILINE)
TEXT = render()


def test_the_page_is_up_to_date():
    assert PAGE.read_text("utf-8") == TEXT, "run python -m tests.docs.recipe_reference"


def test_every_key_of_a_section_has_a_type_and_a_meaning():
    for name, cls in SECTIONS.items():
        for key, field in cls.model_fields.items():
            assert field.description, f"{name}.{key}"
            assert words(field.annotation, field.metadata), f"{name}.{key}"


@pytest.mark.parametrize("part", ["## Tasks", "## Grafts", "## Families"])
def test_every_key_of_a_configuration_has_a_meaning(part):
    rows = ROW.findall(TEXT[TEXT.index(part) :])
    assert len(rows) > 20 and not [key for key, meaning in rows if not meaning.strip()]


def test_no_meaning_is_of_a_key_that_nothing_has():
    assert not [key for key in MEANINGS if f"| `{key.split('.')[-1]}` |" not in TEXT]


def test_every_section_of_a_recipe_is_a_heading():
    headings = {line[3:].split(".")[0].split(",")[0] for line in TEXT.splitlines() if line.startswith("## ")}
    open_tables = {"loss", "waive", "smoke"}
    assert Recipe.model_fields.keys() - open_tables <= headings
    assert all(f"### loss.{term}" in TEXT for name in list_shipped() for term in load(name).loss)


@pytest.mark.parametrize("name", [*list_shipped(), *list_failures()])
def test_the_keys_that_shipped_recipes_set_are_in_it(name):
    recipe = load(name)
    for section in ("data", "train", "eval", "save", "monitor", "control", "freeze", "clamp", "noise"):
        table = getattr(recipe, section)
        for key in table.model_fields_set if table else ():
            assert f"| `{key}` |" in TEXT.split(f"\n## {section}\n")[1].split("\n## ")[0], f"{section}.{key}"


def test_profiles_and_targets_are_explained():
    for name in [*PROFILES, *TARGETS]:
        assert f"| `{name}` |" in TEXT


def test_what_a_docstring_says_behind_a_name_is_its_meaning():
    @dataclasses.dataclass
    class Config:
        """width: of the stream. depth, rank: how many. Note: not a field."""

        width: int = 1
        depth: int = 2
        rank: int = 3

    found = explained(Config)
    assert found == {"width": "of the stream", "depth": "how many", "rank": "how many"}
