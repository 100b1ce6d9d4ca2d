"""Every shipped recipe can be read, says what it asks, and becomes a model."""

import re
import tomllib
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.model_size import count_parameters
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.models import build, configure
from kssm_mlx.models.hybrids.fusions import FUSIONS
from kssm_mlx.oscillators.decay_null import coherence_under_decay, shrinkage
from kssm_mlx.training.recipe import list_shipped, load, parse_override
from kssm_mlx.training.recipe_sections import Pretrained
from kssm_mlx.training.schedules import schedule
from tests.support.pages import ROOT

RECIPES = list_shipped()
every_recipe = pytest.mark.parametrize("name", RECIPES)
FRESH = [name for name in RECIPES if not isinstance(load(name).model, Pretrained)]


def header(name: str) -> list[str]:
    """The comment lines a recipe begins with."""
    lines = RECIPES[name].read_text("utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:end]]


def test_every_published_system_has_one():
    assert RECIPES.keys() >= {
        *(
            "default",
            "tinyshakespeare",
            "phase-mamba",
            "phase-rwkv",
            "logit-modulation",
            "hybrid-v3",
            "modular",
        ),
        *("kssm-v1", "kssm-v2", "kssm-v3", "kssm-v3-monostable", "v3-decay-null", "synthetic-themes"),
        *(f"baseline-{name}" for name in ("rwkv", "mamba", "gpt2")),
        *(f"interleaved-{name}" for name in ("fixed", "broken", "jitter")),
        *(f"hybrid-v4-{fusion}" for fusion in FUSIONS.keys() - {"fixed"}),
    }


@every_recipe
def test_the_header_asks_and_tells(name):
    first, *rest = header(name)
    assert first.endswith("?"), "the first line is the question"
    text = " ".join(rest)
    assert f"kssm train {name}" in text and "Hardware:" in text and "Expected:" in text


@every_recipe
def test_the_table_says_what_the_header_says(name):
    about, (first, *rest) = load(name).about, header(name)
    assert about.question and first.startswith(about.question.rstrip("?"))
    text, goal = " ".join(rest), about.expected
    assert f"Minutes: {about.minutes:g}." in text
    assert f"Expected: {goal.value:g} ± {goal.tolerance:g} " in text
    assert about.hardware.replace("2", "two") in text or about.hardware in text


@pytest.mark.parametrize("name", FRESH)
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


def holds(found, value) -> bool:
    """Whether a table holds all that another says, to any depth; of anything else, whether both are equal."""
    if isinstance(value, list):
        return len(found) == len(value) and all(map(holds, found, value))
    if not isinstance(value, dict):
        return found == value
    return all(key in found and holds(found[key], own) for key, own in value.items())


@every_recipe
@pytest.mark.parametrize("smoke", [False, True])
def test_every_key_is_one_of_the_file(name, smoke):
    """What is read back holds what was written, in the smoke form what its table says."""
    table = tomllib.loads(RECIPES[name].read_text("utf-8"))
    changes, recipe = table.pop("smoke"), load(name, smoke=smoke).model_dump()
    assert changes
    for section, values in (changes if smoke else table).items():
        assert holds(recipe[section], values), section


@every_recipe
def test_the_smoke_form_needs_no_file_and_few_steps(name):
    recipe = load(name, smoke=True)
    assert recipe.data.source.partition(":")[0] in ("pydoc", "themes", "task")
    assert recipe.data.tokenizer in ("bytes", "chars", "chars-reserved", "ids")
    assert recipe.train.steps * recipe.train.batch_size * recipe.train.context <= 50_000


@pytest.mark.parametrize("name", ["kssm-v3", "v3-decay-null"])
def test_the_R_expected_of_v3_is_that_of_decay_alone(name):
    recipe = load(name)
    rates = np.array(schedule(recipe.train)(mx.arange(recipe.train.steps)))
    R = coherence_under_decay(shrinkage(rates, recipe.train.weight_decay), 0.1)
    assert recipe.train.decay == "all"
    assert R[-1] == pytest.approx(recipe.about.expected.value, abs=0.005)


def test_the_sizes_of_hybrids_and_baselines_are_said():
    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    said = {
        name: int(n.replace(",", ""))
        for name, n in re.findall(r"`((?:hybrid|baseline)-[a-z0-9-]+)` \| ([\d,]+) \|", page)
    }
    expected = {name for name in RECIPES if name.startswith(("hybrid-v4", "baseline"))}
    assert said.keys() == expected
    assert said == {name: parameters(load(name)) for name in expected}


def parameters(recipe) -> int:
    model = recipe.model
    options = {"vocab_size": ByteTokenizer().vocab_size, "context": recipe.train.context}
    return count_parameters(build(configure(model.family, model.size, overrides=model.overrides, **options)))


@pytest.mark.parametrize("text, kappa", [("model.kappa=0", 0), ("model.kappa=0.5", 0.5)])
def test_one_word_makes_the_control(text, kappa):
    plain = load("tinyshakespeare")
    control = load("tinyshakespeare", dict([parse_override(text)]))
    overrides = control.model.overrides
    assert configure("kssm", "s", vocab_size=65, overrides=overrides).kappa == kappa
    assert control.about.question == plain.about.question and control.about.expected is None
    left_out: dict[str, Any] = {"model": {"kappa"}, "about": True}
    assert plain.model_dump(exclude=left_out) == control.model_dump(exclude=left_out)


def test_one_shipped_recipe_measures_the_checks_of_memory(tmp_path):
    """D11, D12 and D20 were "not measurable" on every one."""
    recipe = load("passkey")
    data = prepare(recipe.data, tmp_path / "data")
    options = {"vocab_size": data.vocab_size, "context": recipe.train.context}
    named = recipe.model
    model = build(configure(named.family, named.size, overrides=named.overrides, **options))
    context = Context(model=model, data=data, recipe=recipe, tokenizer=data.tokenizer, untrained=True)
    verdicts = {check.id: check.verdict for check in suite.run_suite(context, ["D11", "D12", "D20"])}
    assert verdicts == dict.fromkeys(("D11", "D12", "D20"), "fail")  # it has learned nothing yet
