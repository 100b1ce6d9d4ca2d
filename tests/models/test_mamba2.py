"""Mamba-2: configurations as they are published, the gated norm by hand, limits of the step size."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.mamba2 import GatedNorm, Mamba2, Mamba2Config, preset

MAMBA2_130M = {
    "d_model": 768,
    "d_intermediate": 0,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}


def test_the_published_configuration_of_130m():
    config = Mamba2Config.from_state_spaces(MAMBA2_130M)
    assert (config.num_heads, config.head_dim, config.n_groups, config.state_size) == (24, 64, 1, 128)
    assert config.vocab_size == 50288 and config.tie_word_embeddings


def test_a_file_of_mamba_1_is_refused():
    with pytest.raises(ConfigError, match="layer = 'Mamba1'"):
        Mamba2Config.from_state_spaces({**MAMBA2_130M, "ssm_cfg": {"layer": "Mamba1"}})


def test_heads_must_fill_the_groups():
    with pytest.raises(ConfigError, match="num_heads 8 is not a multiple of n_groups 3"):
        Mamba2Config(vocab_size=5, n_groups=3)


@pytest.mark.parametrize("before_gate", [False, True])
def test_gated_norm_by_hand(before_gate):
    y, z = (np.random.default_rng(i).standard_normal((2, 6)).astype(np.float32) for i in (0, 1))
    norm = GatedNorm(6, 2, 1e-5, before_gate)
    norm.weight = mx.arange(1, 7, dtype=mx.float32)
    gate = z / (1 + np.exp(-z))

    def rms(x):
        g = x.reshape(2, 2, 3)
        return (g / np.sqrt((g**2).mean(-1, keepdims=True) + 1e-5)).reshape(2, 6) * np.arange(1, 7)

    expected = rms(y) * gate if before_gate else rms(y * gate)
    np.testing.assert_allclose(np.array(norm(mx.array(y), mx.array(z))), expected, rtol=1e-4, atol=1e-5)


def test_step_sizes_keep_their_limits():
    config = Mamba2Config(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_heads=4, head_dim=8)
    limited = Mamba2(Mamba2Config(**{**vars(config), "time_step_limit": (0.01, 0.02)}))
    dt = np.array(limited.forward(mx.array([[1, 2, 3]])).trace["block00/dt"])
    assert dt.min() >= 0.01 and dt.max() <= 0.02
    free = np.array(Mamba2(config).forward(mx.array([[1, 2, 3]])).trace["block00/dt"])
    assert free.min() < 0.01 or free.max() > 0.02


def test_the_start_has_decay_rates_of_one_to_sixteen():
    mixer = Mamba2(preset("m", 64, 128)).layers[0].mixer
    rates, steps = np.exp(np.array(mixer.A_log)), np.array(nn.softplus(mixer.dt_bias))
    assert rates.min() >= 1 and rates.max() <= 16
    assert steps.min() >= 1e-3 * 0.999 and steps.max() <= 0.1 * 1.001
