"""A K-SSM of a few thousand parameters with every part at work: couplings, biases, gains off their start."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from kssm_mlx.models import build
from kssm_mlx.models.kssm import KSSM, KSSMConfig

V = 17
VARIANTS = {
    "kick": {},
    "linear": {"kappa": 0.0},
    "half": {"kappa": 0.5},
    "hold": {"leaf": "hold"},
    "coupled": {"coupling": True},
    "coupled hold": {"coupling": True, "leaf": "hold"},
    "bistable": {"triadic": (1.0, 8.0)},
    "spheres": {"dimension": 3},
    "both, wells": {"dimensions": {2: 3, 3: 5}, "wells": 4, "coupling": True, "turning": 0.6},
    "expanded": {"expansion": 4, "mlp_hidden": 0, "field": 20.0},
    "expanded linear": {"expansion": 4, "kappa": 0.0},
    "expanded and spheres": {"expansion": 2, "dimensions": {2: 4, 3: 4}, "field": 5.0, "wells": 3},
    "expanded spheres": {"expansion": 4, "dimension": 3, "mlp_hidden": 0, "field": 20.0, "turning": 0.75},
    "tied": {"tie_embeddings": True, "harmonics": 1, "conv_width": 1},
}


def config(**overrides) -> KSSMConfig:
    small = {"d_model": 16, "n_layers": 2, "n_groups": 8, "mlp_hidden": 24, "memory": 32}
    return KSSMConfig(**{"vocab_size": V, **small, **overrides})


def awake(variant: str = "kick", seed: int = 0) -> KSSM:
    """Every parameter moved away from its initial value: no zero hides what it multiplies."""
    model = build(config(**VARIANTS[variant]), seed)
    keys = iter(mx.random.split(mx.random.key(seed + 100), 200))
    moved = [
        (n, p + 0.1 * mx.random.normal(p.shape, key=next(keys))) for n, p in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(moved))
    mx.eval(model.parameters())
    return model


def tokens(B: int, T: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, V, (B, T)))


def assert_close(got, expected, tolerance=2e-5):
    """Equal trees of arrays, within `tolerance`."""
    got, expected = dict(tree_flatten(got)), dict(tree_flatten(expected))
    assert got.keys() == expected.keys()
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], atol=tolerance, err_msg=str(name))
