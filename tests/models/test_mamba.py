"""Mamba and FalconMamba: configurations as published, layouts, and the start that the paper prescribes."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.mamba import Mamba, MambaConfig, preset

MAMBA_130M_HF = {
    "architectures": ["MambaForCausalLM"],
    "model_type": "mamba",
    "vocab_size": 50280,
    "hidden_size": 768,
    "intermediate_size": 1536,
    "num_hidden_layers": 24,
    "state_size": 16,
    "time_step_rank": 48,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "use_bias": False,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-05,
    "residual_in_fp32": True,
}
MAMBA_130M = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}


def test_both_published_configurations_of_the_same_model_agree():
    ours, original = MambaConfig.from_huggingface(MAMBA_130M_HF), MambaConfig.from_state_spaces(MAMBA_130M)
    assert (original.channels, original.rank, original.vocab_size) == (1536, 48, 50280)
    same = {**vars(original), "time_step_rank": 48}
    assert vars(ours) == same


def test_falcon_mamba_has_an_inner_width_of_its_own():
    values = {"model_type": "falcon_mamba", "vocab_size": 65024, "hidden_size": 4096, "num_hidden_layers": 64}
    config = MambaConfig.from_huggingface({**values, "intermediate_size": 8192, "expand": 16})
    assert config.channels == 8192 and config.model_type == "falcon_mamba"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "no 'hidden_size'"),
        ({"hidden_act": "gelu"}, "'gelu'; this architecture is implemented for 'silu'"),
    ],
)
def test_a_configuration_that_would_be_computed_wrongly_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        MambaConfig.from_huggingface({**MAMBA_130M_HF, **change})


@pytest.mark.parametrize(
    "change",
    [{"attn_layer_idx": [3]}, {"d_intermediate": 64}, {"rms_norm": False}, {"ssm_cfg": {"layer": "Mamba2"}}],
)
def test_other_state_spaces_architectures_are_refused(change):
    with pytest.raises(ConfigError, match=r"config\.json has"):
        MambaConfig.from_state_spaces({**MAMBA_130M, **change})


def test_the_start_is_s4d_real_with_memories_of_ten_to_a_thousand_tokens():
    model = Mamba(preset("xs", 256, 128))
    mixer = model.layers[0].mixer
    np.testing.assert_allclose(np.exp(np.array(mixer.A_log[0])), np.arange(1, 17), rtol=1e-5)
    step = np.array(nn.softplus(mixer.dt_proj.bias))
    assert step.min() >= 1e-3 * 0.999 and step.max() <= 0.1 * 1.001
    assert step.min() < 2e-3 and step.max() > 0.05


def test_sanitize_moves_the_axes_of_every_convolution_and_drops_a_tied_head():
    model = Mamba(MambaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))
    ours = dict(tree_flatten(model.parameters()))
    theirs = {n: x.moveaxis(1, 2) if n.endswith("conv1d.weight") else x for n, x in ours.items()}
    theirs["lm_head.weight"] = theirs["backbone.embeddings.weight"]
    found = model.sanitize(theirs)
    assert found.keys() == ours.keys()
    assert all(mx.array_equal(found[n], ours[n]).item() for n in ours)


def test_quantisation_leaves_the_dynamics_alone():
    model = Mamba(preset("xs", 256, 128))
    nn.quantize(
        model,
        group_size=32,
        bits=8,
        class_predicate=lambda p, m: hasattr(m, "to_quantized") and model.quant_predicate(p, m),
    )
    mixer = model.layers[0].mixer
    assert isinstance(mixer.in_proj, nn.QuantizedLinear) and isinstance(mixer.out_proj, nn.QuantizedLinear)
    assert type(mixer.dt_proj) is nn.Linear and type(mixer.x_proj) is nn.Linear
    assert mx.isfinite(model(mx.array([[1, 2, 3]]))).all().item()
