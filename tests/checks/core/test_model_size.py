"""Large models: cheap checks on their own weights, dear ones on a small model with the same options."""

import math
from dataclasses import dataclass

import pytest

from kssm_mlx import models
from kssm_mlx.checks import suite
from kssm_mlx.checks.core import model_size
from kssm_mlx.checks.core.registry import LEVELS, REGISTRY, Context
from kssm_mlx.models import adapters
from tests.support.fakes import TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.mark.parametrize("family", models.FAMILIES)
def test_the_small_model_keeps_every_option_but_the_size(family):
    large = models.configure(family, "l", vocab_size=48)
    small = model_size.reduce_model(large)
    assert small == models.configure(family, "xs", vocab_size=48)
    assert model_size.count_parameters(models.build(small)) < 1_000_000


def test_an_option_that_is_no_size_is_kept():
    large = models.configure("kssm", "l", vocab_size=48, overrides={"kappa": 0.0, "harmonics": 3})
    assert model_size.reduce_model(large).kappa == 0.0


def test_published_widths_are_derived_again():
    """Mamba 2.8B states its channels and its rank, which the sizes leave to be derived."""
    published = {
        "hidden_size": 2560,
        "num_hidden_layers": 64,
        "intermediate_size": 5120,
        "time_step_rank": 160,
    }
    large = models.configure("mamba", "l", vocab_size=50280, overrides=published)
    small = model_size.reduce_model(large)
    assert (small.channels, small.state_size) == (2 * small.hidden_size, large.state_size)
    assert small.rank < 160 and small.vocab_size == 50280


@pytest.fixture
def large(monkeypatch):
    """A context whose model counts as large."""
    monkeypatch.setattr(model_size, "LARGE", 1000)
    config = models.configure("mamba", "s", vocab_size=32, overrides={"use_bias": True})
    return Context(models.build(config), config)


def test_a_verdict_on_a_large_model_says_what_it_ran_on(large):
    cheap, dear = suite.run_suite(large, ["C6", "C3"])
    assert cheap.ok and cheap.ran_on == "its own weights, at most 2 forward passes"
    assert dear.ok and dear.ran_on.startswith("a fresh model of ") and dear.evidence == "untrained"


def test_adapters_beside_a_frozen_base_model_are_checked_where_they_are(large):
    adapters.attach_lora(large.model, 2, 4.0, 0)
    (found,) = suite.run_suite(large, ["C3"])
    assert found.ran_on == "its own weights, at most 16 forward passes: there is no small model like it"


def test_a_family_without_sizes_is_checked_where_it_is(monkeypatch):
    monkeypatch.setattr(model_size, "LARGE", 1000)
    model = TinyRecurrent()
    (found,) = suite.run_suite(Context(model, model.args), ["C3"])
    assert found.ok and found.ran_on.endswith("there is no small model like it")


@dataclass
class Unhashable:
    """A configuration that nobody can put into a set."""

    vocab_size: int = 16
    model_type: tuple = (["kssm"],)


def test_a_configuration_that_breaks_the_choice_of_a_size_fails_one_check(monkeypatch):
    monkeypatch.setattr(model_size, "LARGE", 1000)
    model = TinyRecurrent()
    dear, cheap = suite.run_suite(Context(model, Unhashable()), ["C3", "C6"])
    assert (dear.verdict, dear.got) == ("fail", "TypeError: unhashable type: 'list'")
    assert cheap.verdict == "pass"


def test_a_model_of_ordinary_size_says_nothing():
    model = TinyRecurrent()
    assert [c.ran_on for c in suite.run_suite(Context(model, model.args), ["C6", "C3"])] == ["", ""]


class Counting(TinyRecurrent):
    """Counts what a check asks of it, in passes of 8 x 128 tokens."""

    passes = 0

    def forward(self, tokens, *args, **kwargs):
        Counting.passes += math.ceil(tokens.size / 1024)
        return super().forward(tokens, *args, **kwargs)


PREFLIGHT = [d for d in REGISTRY.values() if "P" in d.level and d.package == "kssm_mlx"]


@pytest.mark.parametrize("definition", PREFLIGHT, ids=[d.id for d in PREFLIGHT])
def test_no_preflight_check_costs_more_than_it_says(definition, prepared):
    data, recipe = prepared
    Counting.passes, model = 0, Counting(data.vocab_size)
    ctx = Context(
        model,
        model.args,
        recipe,
        data,
        data.tokenizer,
        builder=lambda seed: Counting(data.vocab_size, seed=seed),
    )
    suite.run_check(definition, ctx)
    assert Counting.passes <= definition.passes


def test_data_comes_first_and_the_cheap_before_the_dear():
    for level in LEVELS:
        cost = [REGISTRY[id].passes for id in suite.list_suite(level)]
        assert cost == sorted(cost)
    assert REGISTRY[suite.list_suite("P")[0]].passes == 0
