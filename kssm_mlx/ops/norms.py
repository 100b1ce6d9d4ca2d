"""Layer norm and RMS norm over the last axis: kernels on Linux CPUs, MLX's own everywhere else.

Source: Ba et al. 2016, "Layer Normalization"; Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import dispatch


@dispatch.with_fallback
def layer_norm(
    x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, *, impl: str = "auto"
) -> mx.array:
    """(x - mean) / sqrt(var + eps) weight + bias.

    Shapes: x [..., D]; weight and bias [D], or those of x's last axes, one for each head; None for 1 and 0.
    """
    return _norm(x, weight, bias, eps, impl, centred=True)


@dispatch.with_fallback
def rms_norm(x: mx.array, weight: mx.array | None, eps: float, *, impl: str = "auto") -> mx.array:
    """x / sqrt(mean x^2 + eps) weight. Shapes as in `layer_norm`."""
    return _norm(x, weight, None, eps, impl, centred=False)


def _norm(x, weight, bias, eps: float, impl: str, *, centred: bool) -> mx.array:
    kernel = None if x.dtype == mx.float64 else dispatch.kernel("norms", impl)
    if kernel:
        given = [p for p in (x, weight, bias) if p is not None]
        return kernel(x, weight, bias, eps, centred).astype(mx.result_type(*given))
    if weight is not None and weight.ndim > 1:
        y = _norm(x, None, None, eps, "compiled", centred=centred) * weight
        return y if bias is None else y + bias
    return mx.fast.layer_norm(x, weight, bias, eps) if centred else mx.fast.rms_norm(x, weight, eps)
