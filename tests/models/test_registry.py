"""From words to a configuration to a model: round trips, and one line for what cannot be used."""

import json
from dataclasses import FrozenInstanceError

import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import MODELS, SIZES, build, config_from_dict, config_to_dict, configure, family_of


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("size", SIZES)
def test_every_family_has_every_size_and_survives_json(family, size):
    config = configure(family, size, vocab_size=77, context=64)
    assert config.vocab_size == 77 and family_of(config) == family
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_overrides_replace_single_fields():
    base = config_to_dict(configure("kssm", "xs", vocab_size=5, context=32))
    changed = config_to_dict(
        configure("kssm", "xs", vocab_size=5, context=32, overrides={"kappa": 0, "n_layers": 4})
    )
    assert {k for k in base if base[k] != changed[k]} == {"kappa", "n_layers"}
    assert changed["kappa"] == 0 and isinstance(changed["kappa"], float) and base["memory"] == 32


def test_a_configuration_is_frozen():
    with pytest.raises(FrozenInstanceError):
        configure("kssm", "xs", vocab_size=5).kappa = 2.0


def test_build_makes_the_family_the_configuration_names():
    model = build(configure("kssm", "xs", vocab_size=5))
    assert type(model).__name__ == "KSSM" and model.args.vocab_size == 5 and model.model_type == "kssm"


@pytest.mark.parametrize(
    "family, size, overrides, message",
    [
        ("ksm", "s", {}, r"no model family 'ksm'; known: kssm, .*; did you mean 'kssm'\?"),
        ("kssm", "xl", {}, "no size 'xl'; sizes are xs, s, m, l"),
        ("kssm", "s", {"kapa": 0}, r"unknown key 'model\.kapa' for kssm; did you mean 'kappa'\?"),
        ("kssm", "s", {"zzz": 0}, r"unknown key 'model\.zzz' for kssm$"),
        ("kssm", "s", {"n_layers": "3"}, r"model\.n_layers: .*integer, got '3'"),
        ("kssm", "s", {"n_layers": 2.5}, r"model\.n_layers: .*integer.*, got 2\.5"),
        ("kssm", "s", {"n_layers": True}, r"model\.n_layers: .*integer, got True"),
        ("kssm", "s", {"kappa": "zero"}, r"model\.kappa: .*number, got 'zero'"),
        ("kssm", "s", {"coupling": 1}, r"model\.coupling: .*boolean, got 1"),
        ("kssm", "s", {"leaf": "kik"}, r"model\.leaf: .*'kick' or 'hold', got 'kik'"),
        ("kssm", "s", {"kappa": -1}, "kappa must be >= 0"),
        ("kssm", "s", {"kappa": float("nan")}, "kappa must be >= 0 .*got nan"),
        ("kssm", "s", {"n_layers": 0}, r"model\.n_layers must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_used_is_answered_in_one_line(family, size, overrides, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        configure(family, size, vocab_size=5, overrides=overrides)
    assert "\n" not in str(refusal.value)


def test_a_dictionary_of_another_version_is_refused():
    old = {**config_to_dict(configure("kssm", "xs", vocab_size=5)), "n_oscillators": 8}
    with pytest.raises(ConfigError, match=r"unknown key 'model\.n_oscillators'"):
        config_from_dict(old)
