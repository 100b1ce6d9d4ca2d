"""The four base model families, small, with no parameter left at a value that hides a mistake."""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_flatten

from kssm_mlx.models.mamba import Mamba, MambaConfig
from kssm_mlx.models.mamba2 import Mamba2, Mamba2Config
from kssm_mlx.models.rwkv4 import RWKV4, RWKV4Config
from kssm_mlx.models.rwkv7 import RWKV7, RWKV7Config

V = 17
SMALL = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2}
CONFIGS = {
    "mamba": (Mamba, MambaConfig(**SMALL, state_size=4)),
    "falcon_mamba": (Mamba, MambaConfig(**SMALL, state_size=4, model_type="falcon_mamba")),
    "mamba2": (Mamba2, Mamba2Config(**SMALL, num_heads=4, head_dim=8, state_size=5, n_groups=2)),
    "rwkv": (RWKV4, RWKV4Config(**SMALL, rescale_every=1)),
    "rwkv7": (RWKV7, RWKV7Config(**SMALL, head_dim=8, intermediate_size=24)),
}


def base_model(name: str, dtype: mx.Dtype = mx.float32):
    """A model whose parameters have all been moved, cast as its `cast_predicate` says."""
    model_class, config = CONFIGS[name]
    model = model_class(config, seed=1)
    keep = model.cast_predicate
    moved = [
        (
            path,
            (x + 0.2 * mx.random.normal(x.shape, key=mx.random.key(i))).astype(
                dtype if keep(path) else x.dtype
            ),
        )
        for i, (path, x) in enumerate(tree_flatten(model.parameters()))
    ]
    model.load_weights(moved)
    mx.eval(model.parameters())
    return model


def tokens(B: int, T: int, seed: int = 0) -> mx.array:
    return mx.random.randint(0, V, (B, T), key=mx.random.key(seed))


def leaves(cache) -> list[mx.array]:
    return [array for entry in cache for array in entry]
