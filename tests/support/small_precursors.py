"""K-SSM v1, v2 and v3 of a few thousand parameters, every parameter off the value it starts at."""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from kssm_mlx.models import FAMILIES, configure
from kssm_mlx.models.precursors.base import Precursor

V, LENGTH = 17, 40
PRECURSORS = ("kssm_v1", "kssm_v2", "kssm_v3")


def precursor(family: str, seed: int = 0, **overrides) -> Precursor:
    """In evaluation mode; positions up to `LENGTH`."""
    if family != "kssm_v1":
        overrides = {"max_length": LENGTH, **overrides}
    _, _, model_class = FAMILIES[family].load()
    model = model_class(configure(family, "xs", vocab_size=V, overrides=overrides), seed=seed)
    keys = iter(mx.random.split(mx.random.key(seed + 100), 200))
    moved = [
        (name, p + 0.1 * mx.random.normal(p.shape, key=next(keys)))
        for name, p in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(moved))
    mx.eval(model.parameters())
    return model.eval()


def size_of(model) -> int:
    """Parameters, from their shapes: what is lazy is not allocated."""
    return sum(p.size for _, p in tree_flatten(model.parameters()))
