"""One tiny model of every family that has freeze units, with every parameter moved off its start."""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_flatten

from kssm_mlx import models

V, T, UNITS = 17, 12, 4
FAMILIES = {
    "transformer": {"d_model": 16, "n_layers": 1, "n_heads": 4, "context": 32},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {"hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8, "state_size": 4},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2},
    "rwkv7": {"hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8},
    "kssm": {"d_model": 16, "n_layers": 2, "n_groups": 8, "mlp_hidden": 24, "coupling": True},
    "kssm, expanded": {"d_model": 16, "n_layers": 2, "n_groups": 8, "mlp_hidden": 24, "expansion": 4},
    "kssm, expanded spheres": {"d_model": 16, "n_layers": 2, "n_groups": 8, "expansion": 4, "dimension": 3},
}


def awake(family: str, **overrides):
    config = models.configure(
        family.partition(",")[0], "xs", vocab_size=V, context=T, overrides={**FAMILIES[family], **overrides}
    )
    model = models.build(config, seed=1)
    model.load_weights(
        [
            (path, x + 0.1 * mx.random.normal(x.shape, key=mx.random.key(i)))
            for i, (path, x) in enumerate(tree_flatten(model.parameters()))
        ]
    )
    mx.eval(model.parameters())
    return model


def tokens(rows: int = 3, length: int = T, seed: int = 0) -> mx.array:
    return mx.random.randint(0, V, (rows, length), key=mx.random.key(seed)).astype(mx.int32)
