"""What must be equal for a run to go on, what may differ, and how a difference is told."""

import hashlib
import json
import math
import platform
from types import SimpleNamespace

import mlx.core as mx
import pytest

from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.models import configure
from kssm_mlx.training.checkpoints import identity
from kssm_mlx.training.recipe import parse

SHA = "ab" * 32


def described(digest: str = "d" * 64, vocab_size: int = 6, **sections):
    recipe = parse({"data": {"source": "pydoc", "tokenizer": "chars"}, **sections})
    data = SimpleNamespace(
        index={"files": {"train.bin": {"sha256": SHA}}},
        tokenizer=SimpleNamespace(digest=digest),
        vocab_size=vocab_size,
    )
    model = SimpleNamespace(args=configure("kssm", "xs", vocab_size=vocab_size))
    return identity.describe_identity(model, recipe, data)


def without(found: dict, *keys: str, **others) -> dict:
    """The same as it was written by a version that had not these keys, or had others."""
    config = {key: value for key, value in found["config"].items() if key not in keys} | others
    return {**found, "config": config, "config_hash": "of then"}


# --- what a run is --------------------------------------------------------------------------------------


def test_it_is_the_recipe_the_configuration_and_the_files_by_dotted_keys():
    found = described(train={"steps": 7})
    config = found["config"]
    assert (config["train.steps"], config["files.train.bin"]) == (7, SHA)
    assert config["configuration.vocab_size"] == 6
    assert found["tokenizer"] == {"digest": "d" * 64, "vocab_size": 6}
    text = json.dumps(config, sort_keys=True)
    assert found["config_hash"] == hashlib.sha256(text.encode()).hexdigest()


def test_words_are_no_part_of_it_and_other_sections_are():
    plain, told = described(), described(about={"question": "why?"}, waive={"C1": "a reason"})
    assert told == plain and not [k for k in told["config"] if k.startswith(("about", "waive"))]
    assert described(eval={"every": 3})["config_hash"] != plain["config_hash"]


def test_sections_that_came_later_are_part_of_it_where_they_say_something():
    phases = [{"task": {"length": 64}, "until": 10}, {}]
    assert not [k for k in described()["config"] if k.startswith(("phase", "curriculum"))]
    assert described(data={"source": "task:interleaved"}, phase=phases)["config"]["phase"]


def test_a_base_model_has_the_name_of_old():
    config = described(model={"base": "somewhere"})["config"]
    assert config["model.host"] == "somewhere" and "model.base" not in config


def test_keys_are_flat_and_values_as_json_has_them():
    tree = {"a": {"b": {"c": (1, 2)}, "d": math.inf}, "e": None}
    assert identity.flatten_keys(tree) == {"a.b.c": [1, 2], "a.d": "Infinity", "e": None}


# --- what may differ ------------------------------------------------------------------------------------


def test_the_same_run_has_no_difference():
    assert identity.require_unchanged(described(), described(), allow=False) == []


def test_equal_hashes_are_not_looked_into():
    """The hash is of what is told apart, so a key more is nobody's."""
    then = described()
    now = {**then, "config": {**then["config"], "more": 1}}
    assert identity.require_unchanged(then, now, allow=False) == []


def test_another_tokenizer_is_refused_whatever_is_allowed():
    for now in (described(digest="e" * 64), described(vocab_size=7)):
        with pytest.raises(
            CheckpointError, match=r"with tokenizer dddddddddddd of 6 tokens, the data now has"
        ):
            identity.require_unchanged(described(), now, allow=True)


def test_another_optimizer_is_refused_whatever_is_allowed():
    muon = described(train={"optimizer": "muon"})
    with pytest.raises(CheckpointError, match=r"train.optimizer = 'adamw', is now to go on with 'muon'"):
        identity.require_unchanged(described(), muon, allow=True)
    with pytest.raises(CheckpointError, match=r"train.optimizer = 'adamw', is now to go on with 'muon'"):
        identity.require_unchanged(without(described(), identity.OPTIMIZER), muon, allow=True)


def test_before_there_were_others_the_optimizer_was_adamw():
    then = without(described(), identity.OPTIMIZER)
    assert identity.require_unchanged(then, described(), allow=False) == []


def test_a_difference_is_told_with_both_values_and_refused_unless_allowed():
    then, now = described(train={"steps": 5}), described(train={"steps": 6}, eval={"every": 3})
    every = then["config"]["eval.every"]
    said = [f"eval.every was {every}, is now 3", "train.steps was 5, is now 6"]
    assert identity.require_unchanged(then, now, allow=True) == said
    with pytest.raises(ConfigError, match="; ".join(said) + "; put it back, or pass --allow-config-change"):
        identity.require_unchanged(then, now, allow=False)


@pytest.mark.parametrize("key", ["train.ema", "eval.every", "configuration.kappa"])
def test_a_key_that_a_later_version_added_counts_as_its_default(key):
    now = described()
    assert key in now["config"]
    assert identity.require_unchanged(without(now, key), now, allow=False) == []
    set_otherwise = {**now, "config": {**now["config"], key: "other"}}
    (said,) = identity.require_unchanged(without(now, key), set_otherwise, allow=True)
    assert said == f"{key} was {now['config'][key]!r}, is now 'other'"


def test_a_key_that_went_away_is_a_difference():
    now = described()
    (said,) = identity.require_unchanged(without(now, **{"train.gone": 1}), now, allow=True)
    assert said == "train.gone was 1, is now None"


def test_a_family_that_is_not_ours_has_no_defaults():
    now = described()
    now = {**now, "config": {**now["config"], "configuration.model_type": "theirs"}}
    key = "configuration.kappa"
    (said,) = identity.require_unchanged(without(now, key), now, allow=True)
    assert said.startswith(f"{key} was None, is now ")


# --- what else it depends on ----------------------------------------------------------------------------


@pytest.mark.parametrize("processes, told", [(1, None), (2, 2)])
def test_the_environment_names_processes_where_there_are_several(processes, told):
    found = identity.describe_environment(processes)
    assert found.get("processes") == told and "processes" not in identity.describe_environment()
    assert (found["mlx"], found["python"]) == (mx.__version__, platform.python_version())


def test_the_environment_names_the_switches_that_are_set(monkeypatch):
    name, *others = identity.facts.SWITCHES
    for other in others:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    assert identity.describe_environment()["switches"] == {name: "1"}


@pytest.mark.parametrize(
    "hand_off, rows, fits", [(True, 4, True), (True, 5, False), (False, 4, False), (True, None, False)]
)
def test_a_state_fits_the_rows_that_hand_it_on(hand_off, rows, fits):
    recipe = parse({"train": {"hand_off": hand_off, "batch_size": 4}})
    carry = None if rows is None else [[mx.zeros((rows, 2)), mx.zeros((rows, 3))]]
    assert identity.carry_fits(carry, recipe) == fits


def test_rows_of_two_sizes_fit_nothing():
    recipe = parse({"train": {"hand_off": True, "batch_size": 4}})
    assert not identity.carry_fits([[mx.zeros((4, 2)), mx.zeros((5, 2))]], recipe)


# --- parameters -----------------------------------------------------------------------------------------


def state(average=None, **params):
    params = {name: mx.zeros(shape) for name, shape in params.items()}
    average = average and {name: mx.zeros(shape) for name, shape in average.items()}
    return SimpleNamespace(params=params, evaluated=average or params)


def test_parameters_of_the_same_shapes_go_on():
    identity.require_same_parameters(state(a=(2, 3)), state(a=(2, 3)))


@pytest.mark.parametrize(
    "restored, message",
    [
        (state(a=(3, 2), b=(2,)), r"parameter a has shape \(3, 2\) .* and \(2, 3\) .*\(1 differ\)"),
        (state(a=(2, 3)), r"parameter b has shape None in the checkpoint and \(2,\) in the model"),
        (state(a=(2, 3), b=(2,), c=(1,)), r"parameter c has shape \(1,\) in the checkpoint and None"),
        (state(a=(9,), b=(9,)), r"parameter a has .*\(2 differ\)"),
        (state({"a": (2, 3), "b": (7,)}, a=(2, 3), b=(2,)), r"parameter b has shape \(7,\)"),
        (state({"a": (2, 3), "b": (2,)}, a=(2, 3), b=(8,)), r"parameter b has shape \(8,\)"),
    ],
)
def test_other_parameters_are_named(restored, message):
    """The averaged ones as well, which are what is evaluated."""
    with pytest.raises(CheckpointError, match=message):
        identity.require_same_parameters(restored, state(a=(2, 3), b=(2,)))
