"""No key of a foreign configuration is dropped in silence: it is read, ignored with a reason, or refused."""

import json

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx import models
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.rwkv7 import RWKV7Config
from kssm_mlx.weights.export import export
from kssm_mlx.weights.naming.configs import SHIM_NAME, from_file, from_state_spaces, to_file
from tests.support import weight_files

FOREIGN = ("mamba", "falcon_mamba", "mamba2", "rwkv", "rwkv7")
STATE_SPACES = {"d_model": 16, "n_layer": 2, "vocab_size": 40}


def values(family, **changes):
    return to_file(models.config_from_dict({"model_type": family, **weight_files.CONFIGS[family]})) | changes


@pytest.mark.parametrize("family", FOREIGN)
def test_a_key_that_is_not_understood_is_refused_by_name(family):
    with pytest.raises(ConfigError, match="has scale_of_everything = 2, which is not understood"):
        from_file(values(family, scale_of_everything=2))


@pytest.mark.parametrize("value", ["x", "auto", [1], {"a": 1}])
@pytest.mark.parametrize("family", FOREIGN)
def test_nothing_is_computed_of_what_is_no_number(family, value):
    """A text times an `expand` of two thousand millions was a text of 2 GB, and took 12 seconds."""
    with pytest.raises(ConfigError, match=r"config\.json has hidden_size = .*; expected a number"):
        from_file(values(family, hidden_size=value))
    with pytest.raises(ConfigError, match=r"config\.json has d_model = .*; expected a number"):
        from_state_spaces(STATE_SPACES | {"d_model": value, "ssm_cfg": {"expand": 1 << 31}})
    with pytest.raises(ConfigError, match=r"ssm_cfg in config\.json has expand = .*; expected a number"):
        from_state_spaces(STATE_SPACES | {"d_model": 1 << 31, "ssm_cfg": {"expand": value}})


@pytest.mark.parametrize("family", FOREIGN)
@pytest.mark.parametrize("key", ["auto_map", "model_file"])
def test_code_that_a_file_names_is_never_run(family, key):
    with pytest.raises(ConfigError, match=f"has {key} = .*names code of the model's own"):
        from_file(values(family, **{key: "theirs.py"}))


@pytest.mark.parametrize("family", [*FOREIGN, "kssm"])
def test_our_own_files_name_no_code_but_ours(family):
    from_file(values(family, model_file=SHIM_NAME))
    with pytest.raises(ConfigError, match="auto_map"):
        from_file(values(family, model_file=SHIM_NAME, auto_map={}))
    with pytest.raises(ConfigError, match=r"model_file = 'theirs\.py'"):
        from_file(values(family, model_file="theirs.py"))


@pytest.mark.parametrize(("own", "expected"), [(False, False), (True, True)])
def test_norm_before_gate_is_read_from_our_own_files_only(own, expected):
    """transformers' Mamba-2 gates before the norm whatever the key, which Codestral's configuration has."""
    mark = {"model_file": SHIM_NAME} if own else {}
    assert from_file(values("mamba2", norm_before_gate=True, **mark)).norm_before_gate is expected


def test_an_export_keeps_its_norm_before_the_gate(tmp_path):
    model = weight_files.model("mamba2", norm_before_gate=True)
    export(model, tmp_path / "m")
    assert from_file(json.loads((tmp_path / "m/config.json").read_text())) == model.args


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("mamba2", {"expand": 3}, "expand 3 times hidden_size 16, which is not num_heads 4"),
        ("mamba2", {"rms_norm": False}, "rms_norm = False"),
        ("mamba2", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("mamba", {"is_encoder_decoder": True}, "is_encoder_decoder = True"),
        ("mamba", {"use_bias": 3}, "use_bias"),
        ("rwkv7", {"value_dim": 32}, "value_dim = 32"),
        ("rwkv7", {"num_heads": 4}, "4 heads of 8, which do not fill"),
        ("rwkv7", {"head_norm_eps": 1e-3}, "head_norm_eps"),
    ],
)
def test_another_model_than_ours_is_refused(family, change, message):
    with pytest.raises(ConfigError, match=message):
        models.config_from_dict(models.config_to_dict(from_file(values(family, **change))))


@pytest.mark.parametrize("layer", ["Mamba1", "Mamba2"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ssm_cfg": {"sharpness": 2}}, "ssm_cfg in config.json has sharpness = 2"),
        ({"sharpness": 2}, "config.json has sharpness = 2"),
        ({"rms_norm": False}, "rms_norm = False"),
        ({"attn_layer_idx": [3]}, "attn_layer_idx"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "layer = 'Mamba3'"),
    ],
)
def test_a_key_of_state_spaces_that_is_not_understood_is_refused(layer, change, message):
    ssm = {"layer": layer, "headdim": 8} if layer == "Mamba2" else {"layer": layer}
    asked = {**STATE_SPACES, **change, "ssm_cfg": ssm | change.get("ssm_cfg", {})}
    with pytest.raises(ConfigError, match=message):
        from_state_spaces(asked)


@pytest.mark.parametrize(
    "change", [{"activation": "gelu"}, {"rmsnorm": False}, {"D_has_hdim": True}, {"d_ssm": 8}]
)
def test_the_parts_of_mamba_2_that_are_not_implemented_are_refused(change):
    key, value = next(iter(change.items()))
    with pytest.raises(ConfigError, match=f"{key} = {value!r}"):
        from_state_spaces({**STATE_SPACES, "ssm_cfg": {"layer": "Mamba2", "headdim": 8, **change}})


def test_the_limits_of_the_step_are_those_of_the_file():
    config = from_state_spaces(
        {**STATE_SPACES, "ssm_cfg": {"layer": "Mamba2", "headdim": 8, "dt_limit": [0.01, 0.05]}}
    )
    assert config.time_step_limit == (0.01, 0.05)


def test_the_norm_over_the_heads_of_rwkv7():
    """fla: head_dim times norm_eps. BlinkDL: 64e-5, whatever the heads."""
    plain = RWKV7Config(vocab_size=9, hidden_size=32, head_dim=16)
    assert plain.heads_eps == 16 * 1e-5
    model = weight_files.model("rwkv7", head_norm_eps=64e-5)
    assert model.args.heads_eps == 64e-5
    y = 0.01 * mx.random.normal((1, 1, 2, 8), key=mx.random.key(0))
    norm = model.model.layers[0].attn.g_norm
    norm.weight, norm.bias = mx.ones(16), mx.zeros(16)
    z = np.array(y, np.float64)
    expected = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 64e-5)
    np.testing.assert_allclose(np.array(norm(y)), expected, atol=1e-5)


def test_transformers_and_we_read_codestrals_key_alike(tmp_path):
    torch = pytest.importorskip("torch", reason="transformers computes with torch, which is not installed")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from kssm_mlx.weights.loader import load_weights

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    export(weight_files.model("mamba2"), tmp_path / "m", format="hf")
    path = tmp_path / "m/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_before_gate": True}))
    tokens = [[1, 5, 3, 7, 2, 9]]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")(torch.tensor(tokens), use_cache=False)
    ours = load_weights(tmp_path / "m").model(mx.array(tokens))
    np.testing.assert_allclose(theirs.logits.numpy(), np.array(ours), atol=1e-4)
