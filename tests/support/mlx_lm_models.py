"""Tiny models of mlx-lm's own classes, and checkpoints as mlx-lm itself writes them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from kssm_mlx.data.tokenizers.huggingface import tokenizer_files
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.models import build, configure
from tests.support.model_contract import moved

V = 256
HF = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
OPTIONS = {
    "openelm": {
        "model_dim": 32,
        "num_transformer_layers": 2,
        "head_dim": 8,
        "num_query_heads": [4, 8],
        "num_kv_heads": [2, 4],
        "ffn_multipliers": [1.0, 2.0],
        "ffn_dim_divisor": 8,
    },
    "llama": HF,
    "qwen2": {**HF, "tie_word_embeddings": False},
    "gemma3_text": {**HF, "head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
}


def tiny(name: str, **changes):
    """One of ours around mlx-lm's, every parameter off its start."""
    options = {"model_type": name, **OPTIONS.get(name, HF), **changes}
    return moved(build(configure("mlx_lm", "xs", vocab_size=V, overrides={"options": options}), seed=1))


def folder(path: Path, name: str, **changes) -> Path:
    """A checkpoint that mlx-lm wrote: its names, its config.json; bytes for tokens."""
    from mlx_lm.utils import save_config, save_model

    model = tiny(name, **changes)
    theirs = model._walk.model
    path.mkdir(parents=True, exist_ok=True)
    for file, content in tokenizer_files(ByteTokenizer()).items():
        (path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    save_model(path, theirs)
    save_config({**model.args.to_file(), "eos_token_id": 0}, path / "config.json")
    return path


def tokens(B: int, T: int, seed: int = 0) -> mx.array:
    return mx.random.randint(0, V, (B, T), key=mx.random.key(seed))
