"""Our models from upstream configurations and weights, and frozen checkpoints on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from kssm_mlx.models.mamba import Mamba, MambaConfig
from kssm_mlx.models.mamba2 import Mamba2, Mamba2Config
from kssm_mlx.models.rwkv4 import RWKV4, RWKV4Config
from kssm_mlx.models.rwkv7 import RWKV7, RWKV7Config

FROZEN = Path(__file__).parent / "frozen"
FAMILIES = {
    "mamba": (Mamba, MambaConfig),
    "falcon_mamba": (Mamba, MambaConfig),
    "mamba2": (Mamba2, Mamba2Config),
    "rwkv": (RWKV4, RWKV4Config),
    "rwkv7": (RWKV7, RWKV7Config),
}


def load(config: dict[str, Any], weights: dict[str, np.ndarray], dtype: mx.Dtype = mx.float32):
    """Our model with the upstream weights, every name and shape accounted for."""
    model_class, config_class = FAMILIES[config["model_type"]]
    model = model_class(config_class.from_huggingface(config))
    arrays = model.sanitize({name: mx.array(value) for name, value in weights.items()})
    keep = model.cast_predicate
    model.load_weights([(n, x.astype(dtype if keep(n) else mx.float32)) for n, x in arrays.items()])
    mx.eval(model.parameters())
    return model


def logits(model, tokens: np.ndarray) -> np.ndarray:
    return np.array(model(mx.array(tokens)).astype(mx.float32))


def freeze(name: str, checkpoint, versions: str) -> None:
    """Write weights (fp16, exact), tokens and logits (fp32) into one file of kilobytes."""
    arrays = {f"weights/{key}": value.astype(np.float16) for key, value in checkpoint.weights.items()}
    arrays |= {"tokens": checkpoint.tokens, "logits": checkpoint.logits}
    config = json.dumps(checkpoint.config, default=str, sort_keys=True)
    save_file(arrays, FROZEN / f"{name}.safetensors", metadata={"config": config, "upstream": versions})


def thaw(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """config, weights fp32, tokens, logits."""
    with safe_open(FROZEN / f"{name}.safetensors", framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        config = json.loads(file.metadata()["config"])
    weights = {
        key.removeprefix("weights/"): value.astype(np.float32)
        for key, value in arrays.items()
        if key.startswith("weights/")
    }
    return config, weights, arrays["tokens"], arrays["logits"]
