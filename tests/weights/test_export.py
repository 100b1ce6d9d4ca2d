"""Exported folders: transformers gives our logits, configurations survive, nothing is half-written."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx import models
from kssm_mlx.errors import ConfigError
from kssm_mlx.weights.export import export
from kssm_mlx.weights.naming.configs import from_file, to_file
from kssm_mlx.weights.quantize import quantize
from tests.support.exported import SMALL, TOKENIZER, exported, tiny

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 19)).astype(np.int32)
IN_TRANSFORMERS = {
    "mamba": ("mamba", {}),
    "mamba, untied, biases": ("mamba", {"tie_word_embeddings": False, "use_bias": True, "time_step_rank": 3}),
    "falcon_mamba": ("falcon_mamba", {}),
    "mamba2": ("mamba2", {}),
    "mamba2, time step limits": ("mamba2", {"time_step_limit": (0.01, 0.2), "tie_word_embeddings": False}),
    "mamba2, half a limit": ("mamba2", {"time_step_limit": (0.01, float("inf"))}),
    "rwkv": ("rwkv", {}),
    "rwkv, wide, divided": (
        "rwkv",
        {"attention_hidden_size": 48, "intermediate_size": 40, "weights_rescaled": True, "rescale_every": 1},
    ),
}


@pytest.mark.parametrize("case", IN_TRANSFORMERS)
def test_transformers_computes_our_logits(case, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    family, overrides = IN_TRANSFORMERS[case]
    model = tiny(family, **overrides)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        exported(model, tmp_path / "folder", "hf"), output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(TOKENS), use_cache=False).logits.numpy()
    assert np.abs(logits - np.array(model(mx.array(TOKENS)))).max() < 1e-4


@pytest.mark.parametrize(
    "case", [*IN_TRANSFORMERS.values(), ("rwkv7", {}), ("kssm", {"kappa": 0.5})], ids=str
)
def test_a_configuration_survives_its_file(case):
    family, overrides = case
    config = models.configure(family, "xs", vocab_size=256, overrides=SMALL[family] | overrides)
    again = from_file(json.loads(json.dumps(to_file(config), allow_nan=False)))
    assert to_file(again) == to_file(config)
    assert shapes(models.build(again)) == shapes(models.build(config))


def shapes(model):
    return {name: array.shape for name, array in tree_flatten(model.parameters())}


def test_the_weights_of_an_mlx_lm_folder_are_the_models_bits(tmp_path):
    model = tiny("kssm")
    stored = mx.load(str(exported(model, tmp_path / "folder") / "model.safetensors"))
    own = dict(tree_flatten(model.parameters()))
    assert stored.keys() == own.keys()
    assert all(mx.array_equal(stored[name], own[name]) for name in own)


def test_the_end_of_text_is_where_both_libraries_look(tmp_path):
    folder = exported(tiny("mamba"), tmp_path / "folder")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == [TOKENIZER.separator_id]


REFUSED = {
    "format": ("mamba", {}, "gguf", "no export format 'gguf'"),
    "K-SSM": ("kssm", {}, "hf", "transformers does not have kssm"),
    "RWKV-7": ("rwkv7", {}, "hf", "use --format mlx-lm"),
    "norm before gate": ("mamba2", {"norm_before_gate": True}, "hf", "norm_before_gate"),
    "odd channels": ("mamba", {"intermediate_size": 40}, "hf", "multiple of hidden_size, not 40 of 32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_cannot_hold_is_refused(case, tmp_path):
    family, overrides, format, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        export(tiny(family, **overrides), tmp_path / "folder", format=format)
    assert list(tmp_path.iterdir()) == []


def test_quantised_weights_are_not_for_transformers(tmp_path):
    model = tiny("mamba")
    quantize(model, 8, group_size=32)
    with pytest.raises(ConfigError, match="export the unquantised model"):
        export(model, tmp_path / "folder", format="hf")


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is in use; write into a new folder"):
        exported(tiny("mamba"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_crash_leaves_no_folder(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(mx, "save_safetensors", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        exported(tiny("mamba"), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_nobody_understands_is_refused():
    values = to_file(tiny("kssm").args)
    with pytest.raises(ConfigError, match=r"has kapa = 1\.0, which is not understood.*'kappa'"):
        from_file({**values, "kapa": 1.0})
    with pytest.raises(ConfigError, match="model_type 'lama'"):
        from_file({"model_type": "lama"})
