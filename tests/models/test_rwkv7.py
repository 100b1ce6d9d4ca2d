"""RWKV-7: configurations as they are published, bounds of decay and rate, layouts."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.rwkv7 import RWKV7, RWKV7Config, low_rank, preset, unit
from tests.support.base_models import base_model, tokens

RWKV7_04B = {
    "model_type": "rwkv7",
    "vocab_size": 65536,
    "hidden_size": 1024,
    "hidden_ratio": 4.0,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "head_dim": 64,
    "num_heads": None,
    "decay_low_rank_dim": 64,
    "a_low_rank_dim": 64,
    "v_low_rank_dim": 32,
    "gate_low_rank_dim": 128,
    "hidden_act": "sqrelu",
    "norm_first": True,
    "norm_bias": True,
    "norm_eps": 1e-05,
    "attn": None,
}


def test_a_published_configuration():
    config = RWKV7Config.from_huggingface(RWKV7_04B)
    assert (config.heads, config.wide, config.gate_low_rank_dim) == (16, 4096, 128)


def test_missing_widths_are_those_that_the_authors_suggest():
    names = ("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim")
    config = RWKV7Config.from_huggingface({**RWKV7_04B, "intermediate_size": None, **dict.fromkeys(names)})
    assert [getattr(config, name) for name in names] == [64, 64, 64, 160]
    assert config.wide == 4096 and low_rank(64, 1.7) == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn": {"layers": [3]}}, "attn ="),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"head_dim": 60}, "hidden_size 1024 is not a multiple of head_dim 60"),
    ],
)
def test_a_configuration_that_would_be_computed_wrongly_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        RWKV7Config.from_huggingface({**RWKV7_04B, **change})


def test_decay_never_falls_below_exp_of_minus_exp_of_minus_half():
    trace = base_model("rwkv7").forward(10 * tokens(1, 9) % 17).trace
    decay, rate = np.array(trace["block01/decay"]), np.array(trace["block01/rate"])
    assert decay.min() > np.exp(-np.exp(-0.5)) and decay.max() < 1
    assert rate.min() > 0 and rate.max() < 1


def test_unit_vectors_and_a_finite_gradient_at_zero():
    x = mx.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(np.array(unit(x)), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert mx.isfinite(mx.grad(lambda x: unit(x).sum())(x)).all().item()


def test_mlx_lm_keeps_vectors_per_head_and_sanitize_flattens_them():
    model = RWKV7(preset("xs", 32, 128))
    ours = dict(tree_flatten(model.parameters()))
    per_head = ("k_k", "k_a", "g_norm.weight", "g_norm.bias")
    theirs = {n: x.reshape(2, 32) if n.endswith(per_head) else x for n, x in ours.items()}
    found = model.sanitize(theirs)
    assert all(mx.array_equal(found[n], ours[n]).item() for n in ours)
