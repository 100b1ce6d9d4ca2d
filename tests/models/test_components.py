"""Component tags: every parameter of every family is part of something that has a name."""

import pytest
from mlx.utils import tree_flatten

from kssm_mlx.models import FAMILIES, build, configure
from kssm_mlx.models.base import component_of

BOTH = {"embedding", "norm", "mlp"}
EXPECTED = {
    "kssm": BOTH | {"oscillator", "mixer", "head"},
    "kssm_v1": {"embedding", "oscillator", "mixer", "mlp", "head"},
    "kssm_v2": BOTH | {"oscillator", "mixer"},
    "kssm_v3": BOTH | {"oscillator"},
    "mamba": {"embedding", "norm", "mamba"},
    "falcon_mamba": {"embedding", "norm", "mamba"},
    "mamba2": {"embedding", "norm", "mamba"},
    "rwkv": BOTH | {"rwkv", "head"},
    "rwkv7": BOTH | {"rwkv", "head"},
    "hybrid": BOTH | {"rwkv", "mamba", "fusion"},
    "hybrid_v3": BOTH | {"rwkv", "attention", "mixer"},
    "gru": BOTH | {"mixer", "head"},
    "transformer": BOTH | {"attention"},
    "mlx_lm": BOTH | {"attention"},
}


def tags(model) -> dict[str, str]:
    return {path: component_of(model, path) for path, _ in tree_flatten(model.parameters())}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_known_tag(family):
    model = build(configure(family, "xs", vocab_size=16, context=32))
    assert set(tags(model).values()) == EXPECTED[family]


def test_a_hybrid_tells_its_branches_from_norms_and_feed_forward():
    """By substring, RWKV's share included a feed-forward, the fusion and its norms."""
    model = build(configure("hybrid", "xs", vocab_size=16, overrides={"fusion": "hy"}))
    found = tags(model)
    assert found["blocks.0.rwkv.r_proj.weight"] == "rwkv"
    assert found["blocks.0.mamba.A_log"] == "mamba"
    assert found["blocks.0.fusion.gain_rwkv"] == "fusion"
    for norm in ("rwkv.g_norm", "mamba.norm", "fusion.norm_rwkv", "mixer_norm"):
        assert found[f"blocks.0.{norm}.weight"] == "norm"
    published = build(configure("hybrid", "xs", vocab_size=16, overrides={"rwkv": "published"}))
    assert tags(published)["blocks.0.rwkv.up.weight"] == "mlp"
