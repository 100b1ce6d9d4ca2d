"""Tiny models of every family, every parameter moved off its start, and the folders they are exported to."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from kssm_mlx import models
from kssm_mlx.data.tokenizers.huggingface import tokenizer_files
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.weights.export import export

TOKENIZER = ByteTokenizer()
HF = {"hidden_size": 32, "num_hidden_layers": 2}
SMALL = {
    "kssm": {"d_model": 32, "n_layers": 2, "n_groups": 24, "mlp_hidden": 32, "coupling": True},
    "mamba": {**HF, "state_size": 4},
    "falcon_mamba": {**HF, "state_size": 4, "tie_word_embeddings": False},
    "mamba2": {**HF, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2},
    "rwkv": {**HF, "rescale_every": 1},
    "rwkv7": {**HF, "head_dim": 16, "intermediate_size": 48},
}


def tiny(family: str, **overrides):
    config = models.configure(family, "xs", vocab_size=256, overrides=SMALL[family] | overrides)
    model = models.build(config, seed=1)
    moved = [
        (name, x + 0.1 * mx.random.normal(x.shape, key=mx.random.key(i)))
        for i, (name, x) in enumerate(tree_flatten(model.parameters()))
    ]
    model.load_weights(moved)
    mx.eval(model.parameters())
    return model


def exported(model, folder: Path, format: str = "mlx-lm") -> Path:
    files = tokenizer_files(TOKENIZER)
    return export(
        model, folder, format=format, side_files=files, token_ids={"eos_token_id": [TOKENIZER.separator_id]}
    )
