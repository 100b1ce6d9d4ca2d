"""A tiny random GPT-2: what `transformers` computes, frozen, and the same weights under our names.

python -m tests.parity.gpt2     freezes again (needs torch and transformers)
"""

from __future__ import annotations

import re
from pathlib import Path

import kssm_mlx  # noqa: F401  before mlx, which takes the first BLAS that is there

# isort: split
import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file, save_file

from kssm_mlx.models.transformer import Transformer, TransformerConfig

FROZEN = Path(__file__).parent / "frozen" / "gpt2.safetensors"
V, D, L, H, CONTEXT = 32, 16, 2, 4, 48
RENAMED = (
    (r"^transformer\.wte\.", "embedding."),
    (r"^transformer\.wpe\.weight$", "position"),
    (r"^transformer\.ln_f\.", "norm."),
    (r"^transformer\.h\.", "blocks."),
    (r"\.ln_(.)\.", r".norm\1."),
    (r"\.attn\.c_attn\.", ".attention.qkv."),
    (r"\.attn\.c_proj\.", ".attention.out."),
    (r"\.mlp\.c_fc\.", ".mlp.up."),
    (r"\.mlp\.c_proj\.", ".mlp.down."),
)


def upstream(rows: int = 2, length: int = 41, seed: int = 0):
    """(weights, tokens, logits) of GPT2LMHeadModel; weights rounded to fp16, so a frozen file is exact."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=V, n_embd=D, n_layer=L, n_head=H, n_positions=CONTEXT)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = np.random.default_rng(seed).integers(0, V, (rows, length)).astype(np.int32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
            parameter.copy_(parameter.half().float())
        logits = model(torch.tensor(tokens)).logits.numpy()
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}, tokens, logits


def ours(weights: dict[str, np.ndarray]) -> dict[str, mx.array]:
    """GPT-2's names -> ours; its projections multiply from the right, and its head is the embedding."""
    found = {}
    for name, value in weights.items():
        key = name
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        projection = re.search(r"(qkv|out|up|down)\.weight$", key)
        found[key] = mx.array(value.T if projection else value)
    return {key: value for key, value in found.items() if key != "lm_head.weight"}


def logits(weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    model = Transformer(TransformerConfig(V, d_model=D, n_layers=L, n_heads=H, context=CONTEXT))
    model.load_weights(list(ours(weights).items()))  # strict: every name and shape accounted for
    return np.array(model(mx.array(tokens)))


def thaw():
    """(weights fp32, tokens, logits) as they were frozen."""
    arrays = load_file(FROZEN)
    weights = {n.removeprefix("weights/"): a for n, a in arrays.items() if n.startswith("weights/")}
    return {n: a.astype(np.float32) for n, a in weights.items()}, arrays["tokens"], arrays["logits"]


if __name__ == "__main__":
    weights, tokens, found = upstream()
    halves = {f"weights/{name}": value.astype(np.float16) for name, value in weights.items()}
    save_file({**halves, "tokens": tokens, "logits": found}, FROZEN)
