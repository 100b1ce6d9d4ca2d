"""Parts shared by the models: projections with a chosen start, the gated MLP, inverse softplus."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.ops import norms
from kssm_mlx.ops.elementary import sigmoid, silu, tanh


class LayerNorm(nn.LayerNorm):
    """MLX's, computed by `ops.norms`."""

    def __call__(self, x: mx.array) -> mx.array:
        return norms.layer_norm(x, self.get("weight"), self.get("bias"), self.eps)


class RMSNorm(nn.RMSNorm):
    """MLX's, computed by `ops.norms`."""

    def __call__(self, x: mx.array) -> mx.array:
        return norms.rms_norm(x, self.weight, self.eps)


class Sigmoid(nn.Module):
    """MLX's, computed by `ops.elementary`."""

    def __call__(self, x: mx.array) -> mx.array:
        return sigmoid(x)


class Tanh(nn.Module):
    """MLX's, computed by `ops.elementary`."""

    def __call__(self, x: mx.array) -> mx.array:
        return tanh(x)


def linear(
    key: mx.array, inputs: int, outputs: int, *, std: float | None = None, bias: bool = False
) -> nn.Linear:
    """A projection with weights N(0, std^2), std = 1/sqrt(inputs) unless given, and a zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    scale = inputs**-0.5 if std is None else std
    layer.weight = scale * mx.random.normal((outputs, inputs), key=key)
    if bias:
        layer.bias = mx.zeros((outputs,))
    return layer


ACTIVATIONS = {"gelu": nn.gelu_approx, "relu": nn.relu}


class MLP(nn.Module):
    """y = W_down f(W_up x), f GELU (its tanh form, as in GPT-2) or ReLU."""

    def __init__(
        self,
        key: mx.array,
        d_model: int,
        hidden: int,
        *,
        activation: str = "gelu",
        std: float | None = None,
        out_std: float | None = None,
        bias: bool = False,
    ):
        super().__init__()
        k_in, k_out = mx.random.split(key)
        self.up = linear(k_in, d_model, hidden, std=std, bias=bias)
        self.down = linear(k_out, hidden, d_model, std=out_std, bias=bias)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(self._activation(self.up(x)))


class GatedMLP(nn.Module):
    """y = W_down (silu(W_gate x) * W_up x).

    Source: Shazeer 2020, "GLU variants improve Transformer" (SwiGLU).
    """

    def __init__(self, key: mx.array, d_model: int, hidden: int, out_std: float):
        super().__init__()
        k_in, k_out = mx.random.split(key)
        self.up_gate = linear(k_in, d_model, 2 * hidden)
        self.down = linear(k_out, hidden, d_model, std=out_std)

    def __call__(self, x: mx.array) -> mx.array:
        up, gate = mx.split(self.up_gate(x), 2, axis=-1)
        return self.down(silu(gate) * up)


def inverse_softplus(y: mx.array) -> mx.array:
    """The x with softplus(x) = y, for y > 0."""
    return y + mx.log(-mx.expm1(-y))
