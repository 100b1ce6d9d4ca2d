"""Low-rank adapters: beside a frozen projection W two small trained matrices.

    LoRA    y = W x + s B A x                          s = alpha / rank; nothing is added at the start
    DoRA    y = m (W + s B A) x / |W + s B A|          m one number per output, |W| at the start, rows by norm
    QLoRA   LoRA, W in few bits

Names and shapes are mlx-lm's, `in_proj.lora_a` [in, r], `in_proj.lora_b` [r, out] and `in_proj.m` [out], so
that its tools read the adapters trained here. They are fp32 whatever the base model's weights are.

Sources: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1; Liu et al. 2024,
"DoRA: Weight-Decomposed Low-Rank Adaptation", sections 4.1 and 4.3; Dettmers et al. 2023, "QLoRA".
"""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import LanguageModel

Kind = Literal["lora", "dora", "qlora"]
Projection = nn.Linear | nn.QuantizedLinear


class LoRALinear(nn.Module):
    """A projection and its adapter, which adds nothing at the start. Shapes: x [..., in] -> [..., out]."""

    trained: tuple[str, ...] = ("lora_a", "lora_b")

    def __init__(self, linear: Projection, key: mx.array, rank: int, scale: float):
        super().__init__()
        outputs, inputs = shape_of(linear)
        self.linear = linear
        self.lora_a = inputs**-0.5 * mx.random.uniform(-1, 1, (inputs, rank), key=key)
        # Zero: the adapted model is the base model until the first step.
        self.lora_b = mx.zeros((rank, outputs))
        self.scale = scale

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        # fp32 beside a bf16 base: updates of 1e-4 would be rounded away.
        low = x.astype(mx.float32) @ self.lora_a @ self.lora_b
        return y + (self.scale * low).astype(y.dtype)

    def merge_update(self) -> mx.array:
        """W + s B A in fp32. Shapes: [out, in]."""
        return weight_of(self.linear) + self.scale * (self.lora_a @ self.lora_b).astype(mx.float32).T

    def fuse(self) -> nn.Linear:
        """One projection with the weights W + s B A, in the dtype of W; of one in few bits in that of its
        scales, since rounding to few bits again would lose most of what was learned.
        """
        weight = self.merge_update()
        fused = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in self.linear)
        fused.weight = weight.astype(_dtype_of(self.linear))
        if "bias" in self.linear:
            fused.bias = self.linear.bias
        return fused


class DoRALinear(LoRALinear):
    """The same, and a trained norm for every row of the adapted weights. Shapes: m [out].

    The gradient does not pass through the norm that is divided by, as in the paper's section 4.3.
    """

    trained = ("lora_a", "lora_b", "m")

    def __init__(self, linear: Projection, key: mx.array, rank: int, scale: float):
        super().__init__(linear, key, rank, scale)
        self.m = mx.linalg.norm(weight_of(linear), axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        bias = self.linear.get("bias")
        y = super().__call__(x)
        # The norm belongs to the weights; the bias is none of them.
        y = y if bias is None else y - bias
        y = y * (self.m / mx.stop_gradient(self._norm())).astype(y.dtype)
        return y if bias is None else y + bias

    def merge_update(self) -> mx.array:
        return super().merge_update() * (self.m / self._norm())[:, None]

    def _norm(self) -> mx.array:
        return mx.maximum(mx.linalg.norm(super().merge_update(), axis=1), 1e-12)


def shape_of(linear: Projection) -> tuple[int, int]:
    """(outputs, inputs)."""
    outputs, inputs = linear.weight.shape
    return outputs, inputs * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else inputs


def weight_of(linear: Projection) -> mx.array:
    """The weights, of those in few bits as they are read, fp32. Shapes: [out, in]."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight.astype(mx.float32)
    return mx.dequantize(
        linear.weight,
        linear.scales,
        linear.get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    ).astype(mx.float32)


def _dtype_of(linear: Projection) -> mx.Dtype:
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight.dtype
    # The scales of mxfp4 and mxfp8 are exponents; what they are read as is then bf16.
    return linear.scales.dtype if mx.issubdtype(linear.scales.dtype, mx.floating) else mx.bfloat16


def attach_lora(
    model: LanguageModel, rank: int, alpha: float, seed: int = 0, kind: Kind = "lora"
) -> list[str]:
    """Freeze `model` and put an adapter beside each wide projection of its blocks; returns their names.

    Wide is what `quant_predicate` lets be quantised: the projections that set the dynamics stay untouched.
    With "qlora" it is what is quantised.
    Raises: ConfigError for a model without such projections, or a rank above the smallest of them.
    """
    allows, base = model.quant_predicate, nn.QuantizedLinear if kind == "qlora" else nn.Linear
    blocks = {id(m) for block in model.layers for m in block.modules()}
    found = {
        path: module
        for path, module in model.named_modules()
        if type(module) is base and id(module) in blocks and allows(path, module)
    }
    if not found and kind == "qlora":
        raise ConfigError(
            'model.train = "qlora" is for a quantised base model, and no projection of this one is; kssm '
            'convert it first, set model.quantize = { bits = 4 }, or take "lora"'
        )
    if not found:
        raise ConfigError(
            "the base model has no unquantised projection to adapt; give the unquantised model, or take "
            'model.train = "qlora"'
        )
    smallest = min(min(shape_of(module)) for module in found.values())
    if rank > smallest:
        raise ConfigError(
            f"rank {rank} is above {smallest}, the width of the base model's smallest projection"
        )
    adapter = DoRALinear if kind == "dora" else LoRALinear
    names, model_keys = sorted(found), mx.random.split(mx.random.key(seed), len(found))
    adapted = {name: adapter(found[name], key, rank, alpha / rank) for name, key in zip(names, model_keys)}
    model.freeze()
    model.update_modules(tree_unflatten(list(adapted.items())))
    for module in adapted.values():
        module.unfreeze(keys=list(module.trained), recurse=False)
    mx.eval(model.parameters())
    return names


def adapters_of(model: LanguageModel) -> dict[str, LoRALinear]:
    """The adapters by name; {} where there is none."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def fuse_lora(model: LanguageModel) -> LanguageModel:
    """`model` with every adapter added into its projection, in place; one without any is left as it is."""
    fused = [(name, m.fuse()) for name, m in adapters_of(model).items()]
    if fused:
        model.update_modules(tree_unflatten(fused))
        mx.eval(model.parameters())
    return model
