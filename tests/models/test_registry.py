"""From words to a configuration to a model: round trips, and one line for what cannot be used."""

import json
from dataclasses import FrozenInstanceError

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import FAMILIES, SIZES, build, config_from_dict, config_to_dict, configure, family_of
from kssm_mlx.models.rwkv4 import RWKV4


@pytest.mark.parametrize("family", FAMILIES)
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


COUNTS = {  # those that no configuration wants at 0
    "kssm": ("n_layers", "n_groups", "harmonics"),
    "kssm_v1": ("n_oscillators", "harmonics"),
    "kssm_v2": ("n_layers", "n_oscillators", "max_length"),
    "kssm_v3": ("n_layers", "n_oscillators", "harmonics", "max_length", "d_model"),
    "mamba": ("hidden_size", "num_hidden_layers", "intermediate_size", "time_step_rank"),
    "mamba2": ("num_heads", "n_groups"),
    "rwkv": ("num_hidden_layers", "attention_hidden_size"),
    "rwkv7": ("head_dim", "num_hidden_layers"),
    "hybrid": ("d_model", "n_layers", "head_dim", "mlp_ratio", "state_size", "expand", "conv_kernel"),
    "hybrid_v3": ("d_model", "n_layers", "n_heads", "groups"),
    "gru": ("d_model", "n_layers", "state_size"),
    "transformer": ("d_model", "n_layers", "n_heads"),
}


@pytest.mark.parametrize("family, name", [(family, name) for family in COUNTS for name in COUNTS[family]])
@pytest.mark.parametrize("count", [0, -2])
def test_nothing_is_built_of_no_parts(family, name, count):
    with pytest.raises(ConfigError, match=rf"^model\.{name} must be at least 1, got {count}$"):
        configure(family, "xs", vocab_size=5, overrides={name: count})


@pytest.mark.parametrize(
    "family, overrides, message",
    [
        ("transformer", {"d_ff": -1}, "model.d_ff must be at least 0, got -1"),
        ("transformer", {"head_bias": True}, "head_bias is that of an untied head; set tie_embeddings = fal"),
        ("hybrid", {"fusion": "hy", "pattern": "RM"}, "model.fusion = 'hy' does nothing with pattern 'RM'"),
        ("hybrid", {"share": 0.3, "pattern": "R"}, "model.share = 0.3 does nothing with pattern 'R'"),
        ("hybrid", {"share": 0.3, "fusion": "cp"}, "share = 0.3 does nothing .* fusion 'cp'; leave it out"),
        ("hybrid", {"rwkv": "published", "pattern": "M"}, "model.rwkv = 'published' does nothing"),
        ("hybrid", {"pattern": "RRRMMM"}, "pattern 'RRRMMM' is longer than n_layers 4; it is never cut"),
        ("hybrid_v3", {"mlp_ratio": -1.0}, "mlp_ratio -1.0 leaves channel mixing without a channel"),
        ("hybrid_v3", {"blend": 3}, "model.blend is a share between 0 and 1, got 3"),
        (
            "hybrid_v3",
            {"init": "senior", "retention": 0.9},
            'retention is what init = "identity" begins',
        ),
        ("hybrid_v3", {"wiring": "v020", "gamma": 0.5}, 'wiring = "v020" has no gamma'),
        ("kssm_v2", {"dropout": 1.0}, r"model.dropout is in \[0, 1\), got 1.0"),
        ("kssm_v2", {"dropout": -0.5}, r"model.dropout is in \[0, 1\), got -0.5"),
        ("kssm_v3", {"u_floor": 11.0}, "model.u_floor 11.0 is above u_ceiling 10.0"),
    ],
)
def test_options_that_would_do_nothing_or_cannot_be_meant_are_refused(family, overrides, message):
    with pytest.raises(ConfigError, match=message):
        configure(family, "xs", vocab_size=5, overrides=overrides)


def test_zero_is_a_number_where_it_means_none():
    assert configure("transformer", "xs", vocab_size=5, overrides={"d_ff": 0}).wide == 0
    assert configure("rwkv", "xs", vocab_size=5, overrides={"rescale_every": 0}).rescale_every == 0


def test_a_dictionary_of_another_version_is_refused():
    old = {**config_to_dict(configure("kssm", "xs", vocab_size=5)), "n_oscillators": 8}
    with pytest.raises(ConfigError, match=r"unknown key 'model\.n_oscillators'"):
        config_from_dict(old)


def test_what_no_machine_can_hold_is_refused_before_it_is_made():
    with pytest.raises(ConfigError, match=r"n_layers must be at most 4,096, got 100,000,000"):
        configure("kssm", "xs", vocab_size=16, overrides={"n_layers": 10**8})
    large = configure("kssm", "xs", vocab_size=16, overrides={"d_model": 2**22})
    with pytest.raises(ConfigError, match=r"a kssm of .* parameters takes .* GiB; this machine gives .* GiB"):
        build(large)


def test_a_key_of_another_family_comes_with_the_way_to_take_it_out():
    with pytest.raises(ConfigError, match=r"'model.kappa' for mamba.*; --set model.kappa= takes it out"):
        configure("mamba", "xs", vocab_size=16, overrides={"kappa": 1.0})


def test_keys_of_another_family_are_named_together_and_how_they_are_taken_out():
    with pytest.raises(ConfigError) as both:
        configure("mamba", vocab_size=8, overrides={"kappa": 1.0, "expansion": 4})
    assert str(both.value) == (
        "mamba has no keys kappa, expansion; --set model.kappa= --set model.expansion= "
        "takes them out of a recipe of another family"
    )
    with pytest.raises(ConfigError, match=r"unknown key 'model\.kapa' for mamba$"):
        configure("mamba", vocab_size=8, overrides={"expansion": 4, "kapa": 1.0})


def list_transposed(model) -> list[str]:
    """Parameters whose numbers do not lie in memory row after row."""
    return [name for name, x in tree_flatten(model.parameters()) if not memoryview(x).c_contiguous]


@pytest.mark.parametrize("vocab_size", [17, 300])
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_parameters_lie_row_after_row(family, vocab_size):
    assert list_transposed(build(configure(family, "xs", vocab_size=vocab_size))) == []


def test_a_transposed_parameter_is_seen_and_changes_no_more_than_the_last_bits():
    """Why `build` lays them out: an orthogonal head with fewer rows than columns comes transposed."""
    config = configure("rwkv", "s", vocab_size=65)
    model, as_it_comes = build(config), RWKV4(config, seed=0)
    tokens = mx.array(np.random.default_rng(0).integers(0, 65, (2, 16)))
    mx.eval(as_it_comes.parameters())
    assert list_transposed(as_it_comes) == ["head.weight"]
    difference = mx.abs(model(tokens) - as_it_comes(tokens)).max().item()
    assert difference < 1e-5  # zero where the BLAS adds both in one order
