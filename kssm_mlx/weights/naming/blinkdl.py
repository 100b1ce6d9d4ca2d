"""The configuration of BlinkDL's RWKV files, which carry none: read off names and shapes of the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.rwkv4 import RWKV4Config
from kssm_mlx.models.rwkv7 import RWKV7Config

HEAD_NORM_EPS = 64e-5  # BlinkDL's code has this number, whatever the size of a head
Shapes = Mapping[str, tuple[int, ...]]


def infer(shapes: Shapes) -> RWKV4Config | RWKV7Config:
    """Version and sizes. Raises: ConfigError for another version and for tensors that tell too little."""
    first = {name.removeprefix("blocks.0.att.") for name in shapes if name.startswith("blocks.0.att.")}
    try:
        if {"r_k", "w0", "a0"} & first:
            return _rwkv7(shapes)
        if {"time_mix_k", "time_first"} <= first:
            return _rwkv4(shapes)
    except (KeyError, ValueError) as e:
        raise ConfigError(
            f"the sizes of this RWKV cannot be read off its tensors: {e} is missing or odd"
        ) from None
    version = "RWKV-6" if "time_maa_x" in first else "RWKV-5" if "time_faaaa" in first else "no RWKV we know"
    raise ConfigError(f"the tensors are those of {version}; RWKV-4 and RWKV-7 are read")


def _rwkv4(shapes: Shapes) -> RWKV4Config:
    V, D = shapes["emb.weight"]
    A, _ = shapes["blocks.0.att.key.weight"]
    F, _ = shapes["blocks.0.ffn.key.weight"]
    return RWKV4Config(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=_blocks(shapes),
        attention_hidden_size=A,
        intermediate_size=F,
        tie_word_embeddings="head.weight" not in shapes,
    )


def _rwkv7(shapes: Shapes) -> RWKV7Config:
    V, D = shapes["emb.weight"]
    _, K = shapes["blocks.0.att.r_k"]
    F, _ = shapes["blocks.0.ffn.key.weight"]
    # The first block has no use for a value mix; the width is that of the second.
    value_mix = shapes.get("blocks.1.att.v1") or shapes.get("blocks.0.att.v1") or (D, 1)
    return RWKV7Config(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=_blocks(shapes),
        head_dim=K,
        intermediate_size=F,
        decay_low_rank_dim=shapes["blocks.0.att.w1"][1],
        a_low_rank_dim=shapes["blocks.0.att.a1"][1],
        gate_low_rank_dim=shapes["blocks.0.att.g1"][1],
        v_low_rank_dim=value_mix[1],
        head_norm_eps=HEAD_NORM_EPS,
        tie_word_embeddings="head.weight" not in shapes,
    )


def _blocks(shapes: Shapes) -> int:
    return 1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in shapes) if m)
