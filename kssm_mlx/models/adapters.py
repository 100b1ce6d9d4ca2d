"""Low-rank adapters (LoRA): beside a frozen projection W two small trained matrices, y = W x + α/r B A x.

Names and shapes are mlx-lm's, `in_proj.lora_a` [in, r] and `in_proj.lora_b` [r, out], so that its tools read
the adapters trained here. They are fp32 whatever the base model's weights are.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import LanguageModel

MATRICES = ("lora_a", "lora_b")


class LoRALinear(nn.Module):
    """A projection and its adapter, which adds nothing at the start. Shapes: x [..., in] -> [..., out]."""

    def __init__(self, linear: nn.Linear, key: mx.array, rank: int, scale: float):
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.linear = linear
        self.lora_a = inputs**-0.5 * mx.random.uniform(-1, 1, (inputs, rank), key=key)
        self.lora_b = mx.zeros((rank, outputs))
        self._scale = scale

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        low = x.astype(mx.float32) @ self.lora_a @ self.lora_b
        return y + (self._scale * low).astype(y.dtype)

    def fused(self) -> nn.Linear:
        """One projection with the weights W + α/r (A B)ᵀ, in W's dtype."""
        W = self.linear.weight
        outputs, inputs = W.shape
        change = self._scale * (self.lora_a.astype(mx.float32) @ self.lora_b.astype(mx.float32)).T
        fused = nn.Linear(inputs, outputs, bias="bias" in self.linear)
        fused.weight = (W.astype(mx.float32) + change).astype(W.dtype)
        if "bias" in self.linear:
            fused.bias = self.linear.bias
        return fused


def attach_lora(model: LanguageModel, rank: int, alpha: float, seed: int = 0) -> list[str]:
    """Freeze `model` and put an adapter beside each wide projection of its blocks; returns their names.

    Wide is what `quant_predicate` lets be quantised: the projections that set the dynamics stay untouched.
    Raises: ConfigError for a model without such projections, or a rank above the smallest of them.
    """
    allows = model.quant_predicate
    blocks = {id(m) for block in model.layers for m in block.modules()}
    found = {
        path: module
        for path, module in model.named_modules()
        if type(module) is nn.Linear and id(module) in blocks and allows(path, module)
    }
    if not found:
        raise ConfigError("the base model has no unquantised projection to adapt; give the unquantised model")
    smallest = min(min(module.weight.shape) for module in found.values())
    if rank > smallest:
        raise ConfigError(
            f"rank {rank} is above {smallest}, the width of the base model's smallest projection"
        )
    names, model_keys = sorted(found), mx.random.split(mx.random.key(seed), len(found))
    adapted = {name: LoRALinear(found[name], key, rank, alpha / rank) for name, key in zip(names, model_keys)}
    model.freeze()
    model.update_modules(tree_unflatten(list(adapted.items())))
    for module in adapted.values():
        module.unfreeze(keys=list(MATRICES), recurse=False)
    mx.eval(model.parameters())
    return names


def fuse_lora(model: LanguageModel) -> LanguageModel:
    """`model` with every adapter added into its projection, in place; one without any is left as it is."""
    fused = [(name, m.fused()) for name, m in model.named_modules() if isinstance(m, LoRALinear)]
    if fused:
        model.update_modules(tree_unflatten(fused))
        mx.eval(model.parameters())
    return model
