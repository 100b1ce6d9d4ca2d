"""Quantised models: what is left alone, how much is lost, and that a folder gives back the same bits."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx import models
from kssm_mlx.errors import ConfigError
from kssm_mlx.weights.naming.configs import from_file
from kssm_mlx.weights.quantize import apply_quantization, quantization_of, quantize
from tests.support.exported import SMALL, exported, tiny

TOKENS = mx.array(np.random.default_rng(0).integers(0, 256, (2, 19)))
MODES = [(8, "affine"), (4, "affine"), (4, "mxfp4"), (8, "mxfp8")]
ALONE = ("A_log", "dt_bias", "conv", "norm", "omega", "log_gamma", "time_decay", "time_first", "time_mix")
SMALL_PROJECTIONS = ("x_proj", "dt_proj", "field", "time_step", "readout", "lora.0", "lora.2")


def scaled_error(model, reference) -> float:
    """RMS difference of the logits over their standard deviation."""
    return float(mx.sqrt(mx.mean((model(TOKENS) - reference) ** 2)) / mx.std(reference))


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("bits, mode", MODES)
def test_logits_stay_near_and_the_dynamics_untouched(family, bits, mode):
    model = tiny(family)
    before, reference = dict(tree_flatten(model.parameters())), model(TOKENS)
    names = quantize(model, bits, mode, group_size=32)
    assert names
    assert not any(name.endswith(SMALL_PROJECTIONS) for name in names)
    after = dict(tree_flatten(model.parameters()))
    kept = [n for n in before if any(part in n for part in (*ALONE, *SMALL_PROJECTIONS))]
    assert kept and all(mx.array_equal(before[n], after[n]) for n in kept)
    error = scaled_error(model, reference)
    assert 0 < error < (0.1 if (bits, mode) == (8, "affine") else 0.8)


def test_eight_bits_lose_less_than_four():
    errors = []
    for bits in (8, 4):
        model = tiny("mamba")
        reference = model(TOKENS)
        quantize(model, bits, group_size=32)
        errors.append(scaled_error(model, reference))
    assert errors[0] < errors[1] / 4


@pytest.mark.parametrize("family", SMALL)
def test_a_folder_gives_back_the_quantised_bits(family, tmp_path):
    model = tiny(family)
    quantize(model, 4, group_size=32)
    again, config = loaded(exported(model, tmp_path / "folder"))
    assert mx.array_equal(again(TOKENS), model(TOKENS))
    assert quantization_of(again) == config["quantization"]


def loaded(folder):
    config = json.loads((folder / "config.json").read_text())
    weights = mx.load(str(folder / "model.safetensors"))
    model = apply_quantization(models.build(from_file(config)), config, weights.keys())
    model.load_weights(list(weights.items()), strict=True)
    return model, config


def test_a_folder_of_mlx_lm_names_only_what_differs(tmp_path):
    """mlx_lm.convert writes the settings once; which modules they hold for shows in the weights."""
    model = tiny("mamba")
    quantize(model, 8, group_size=32)
    folder = exported(model, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    settings = {k: v for k, v in config["quantization"].items() if not isinstance(v, dict)}
    (folder / "config.json").write_text(json.dumps(config | {"quantization": settings}))
    again, _ = loaded(folder)
    assert mx.array_equal(again(TOKENS), model(TOKENS))


def test_mlx_lm_runs_the_folder(tmp_path):
    from mlx_lm import load

    model = tiny("kssm")
    quantize(model, 4, "mxfp4")
    theirs, _ = load(str(exported(model, tmp_path / "folder")), trust_remote_code=True)
    assert mx.array_equal(theirs(TOKENS), model(TOKENS))


def test_an_unquantised_folder_passes_unchanged():
    model = apply_quantization(tiny("mamba"), {"model_type": "mamba"}, ())
    assert quantization_of(model) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5,), "affine quantisation has no bits 5; it has 4 or 8"),
        ((4, "mxfp5"), "no quantisation mode 'mxfp5'; modes are affine"),
        ((4, "mxfp8"), "mxfp8 quantisation has no bits 4; it has 8"),
        ((4, "affine", 33), "no group size 33"),
        ((4, "affine", 128), "no projection of this model has rows that are a multiple of 128"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        quantize(tiny("kssm"), *arguments)


def test_a_quantised_model_is_not_quantised_again():
    model = tiny("mamba")
    quantize(model, 8, group_size=32)
    with pytest.raises(ConfigError, match="quantised already"):
        quantize(model, 4, group_size=32)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "not MLX's"),
        ({"quantization": {"bits": 4}}, "has no 'group_size'"),
    ],
)
def test_a_foreign_quantisation_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        apply_quantization(nn.Linear(4, 4), config, ())
