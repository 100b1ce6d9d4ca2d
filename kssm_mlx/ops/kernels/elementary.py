"""Functions of one number at a time for Linux CPUs, where MLX calls scalar libm: 12-35 ns an element."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import elementary as compiled
from kssm_mlx.ops.gpu import Kernel
from kssm_mlx.ops.proof import Arrays, Case, normal

# In the order of elementary.inc.
NAMES = (
    *("exp", "sigmoid", "silu", "softplus", "relu2", "tanh", "tanh_by_x", "sin", "cos"),
    *("slope_of_relu2", "slope_of_tanh_by_x"),
)
# Any number of elements makes packs, and what is left over.
FUNCTION = Kernel("elementary", sizes="which", inputs="x", outputs="y", side="LANES")

BIASED = Kernel("biased_sigmoid", sizes="D", inputs="x bias", outputs="y", side="D")


def elementary(name: str, x: mx.array) -> mx.array:
    """Shapes: x any, fp32 or bf16; the result is fp32."""
    x = x if x.dtype == mx.bfloat16 else x.astype(mx.float32)
    return FUNCTION((x,), [x.shape], lanes=x.size, which=NAMES.index(name))[0]


def biased_sigmoid(x: mx.array, bias: mx.array) -> mx.array:
    """Shapes: x [..., D]; bias [D]; the result is fp32."""
    x, bias = (a if a.dtype == mx.bfloat16 else a.astype(mx.float32) for a in (x, bias))
    return BIASED((x, bias), [x.shape], lanes=x.size, D=x.shape[-1])[0]


def _apply_all(x: mx.array, *, impl: str = "auto") -> Arrays:
    names = ("exp", "sigmoid", "silu", "softplus", "relu2", "tanh", "sin", "cos")
    two = [compiled.tanh_by_x(x * x, impl=impl), compiled.biased_sigmoid(x, 3 * x[0, 0], impl=impl)]
    return [*(getattr(compiled, name)(x, impl=impl) for name in names), *two]


CASE = Case(_apply_all, lambda B, T, D: [normal(0, B, T, D)], 1, lambda op, x, masks: op(x[0]), masked=False)
