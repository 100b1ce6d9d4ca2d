"""Tiny random checkpoints of the architectures' own libraries, with the logits these libraries compute.

Needs torch with transformers, and the `rwkv` package for RWKV-7. Weights are rounded to fp16, so that a
frozen file holds exactly the numbers that were run, in half the bytes.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TOKENS = np.random.default_rng(0).integers(0, 32, (2, 41)).astype(np.int32)
SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2}


class Checkpoint(NamedTuple):
    """config: the upstream `config.json`; weights: upstream names and shapes; logits [B, T, V], fp32."""

    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    tokens: np.ndarray
    logits: np.ndarray


# name -> model class of transformers, what differs from the smallest configuration.
TRANSFORMERS = {
    "mamba": ("Mamba", {"state_size": 4}),
    "mamba-untied-bias": (
        "Mamba",
        {"state_size": 5, "expand": 3, "conv_kernel": 3, "time_step_rank": 2, "use_bias": True}
        | {"use_conv_bias": False, "tie_word_embeddings": False},
    ),
    "falcon_mamba": ("FalconMamba", {"state_size": 4, "tie_word_embeddings": False}),
    "mamba2": ("Mamba2", {"num_heads": 4, "head_dim": 8, "state_size": 6, "n_groups": 1}),
    "mamba2-groups-tied-bias": (
        "Mamba2",
        {"num_heads": 4, "head_dim": 8, "state_size": 6, "n_groups": 2, "chunk_size": 8, "use_bias": True}
        | {
            "use_conv_bias": False,
            "conv_kernel": 3,
            "time_step_limit": (0.01, 0.2),
            "tie_word_embeddings": True,
        },
    ),
    "rwkv": ("Rwkv", {"rescale_every": 0}),
    "rwkv-rescaled-tied": ("Rwkv", {"num_hidden_layers": 5, "rescale_every": 2, "tie_word_embeddings": True}),
    "rwkv-wide": ("Rwkv", {"attention_hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3}),
}
NAMES = (*TRANSFORMERS, "rwkv7")


def checkpoint(name: str) -> Checkpoint:
    """Build, run and return one of `NAMES`; the same numbers every time."""
    if name == "rwkv7":
        return rwkv7()
    model = transformers_model(name)
    config = model.config.to_dict()
    weights = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    return Checkpoint(config, weights, TOKENS, transformers_logits(model, TOKENS))


def transformers_model(name: str):
    """The random upstream model in evaluation mode, every parameter moved off its initial value."""
    import torch
    import transformers

    family, changes = TRANSFORMERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
            parameter.copy_(parameter.half().float())
    return model


def transformers_logits(model, tokens: np.ndarray) -> np.ndarray:
    """Without a cache: RwkvForCausalLM sizes its cache wrongly when attention_hidden_size differs."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens), use_cache=False).logits.float().numpy()


def rwkv7(tokens: np.ndarray = TOKENS) -> Checkpoint:
    """From `rwkv`, the package of the architecture's author, whose heads are 64 wide."""
    from mlx.utils import tree_flatten

    from kssm_mlx.models.rwkv7 import RWKV7, RWKV7Config

    ranks = dict.fromkeys(("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim"), 8)
    config = RWKV7Config(vocab_size=32, hidden_size=128, num_hidden_layers=2, intermediate_size=48, **ranks)
    rng = np.random.default_rng(0)
    weights = {}
    for key, value in tree_flatten(RWKV7(config).parameters()):
        moved = np.array(value) + 0.05 * rng.standard_normal(value.shape)
        weights[key] = moved.astype(np.float16).astype(np.float32)
    return Checkpoint(asdict(config), weights, tokens, rwkv_logits(weights, tokens))


def rwkv_logits(weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """What the `rwkv` package computes for RWKV-7 weights under fla's names."""
    os.environ.update(RWKV_V7_ON="1", RWKV_CUDA_ON="0")
    import torch
    from rwkv.model import RWKV

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        torch.save({key: torch.tensor(value) for key, value in blinkdl(weights).items()}, f"{path}.pth")
        model = RWKV(model=str(path), strategy="cpu fp32")
        return np.stack([model.forward(row.tolist(), None, full_output=True)[0].numpy() for row in tokens])


BLINKDL = (
    (r"^model\.embeddings\.", "emb."),
    (r"^lm_head\.", "head."),
    (r"^model\.norm\.", "ln_out."),
    (r"^model\.layers\.", "blocks."),
    (r"\.pre_norm\.", ".ln0."),
    (r"\.attn_norm\.", ".ln1."),
    (r"\.ffn_norm\.", ".ln2."),
    (r"\.attn\.", ".att."),
    (r"\.r_proj\.", ".receptance."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.o_proj\.", ".output."),
    (r"\.g_norm\.", ".ln_x."),
    (r"(.)_lora\.lora\.0\.weight$", r"\g<1>1"),
    (r"(.)_lora\.lora\.2\.weight$", r"\g<1>2"),
    (r"(.)_lora\.lora\.2\.bias$", r"\g<1>0"),
)


def blinkdl(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """fla's names -> the author's, whose low-rank maps multiply from the right."""
    found = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in BLINKDL:
            name = re.sub(pattern, replacement, name)
        found[name] = value.T.copy() if "_lora" in key and key.endswith("weight") else value
    return found
