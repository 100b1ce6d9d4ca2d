"""Mamba-2: the scan of Mamba with one decay per head (SSD), and a gated norm before the output projection.

    z, (u, B, C), Δ = W_in x;  (u, B, C) = silu(conv(u, B, C));  Δ = clip(softplus(Δ + b_Δ))
    y = ssd(u, Δ, A, B, C) + D u;  x + W_out norm(y · silu(z))

Parameter names are those of the Hugging Face files; only the axis order of the convolution differs. They are
Mamba's (mamba.py) except in `backbone.layers.N.mixer.`, with I = H P channels, H heads, G groups of B and C:

    in_proj.weight [2I + 2GN + H, D]   conv1d.weight [I + 2GN, W, 1], there [I + 2GN, 1, W]   conv1d.bias
    dt_bias [H]   A_log [H]   D [H]   norm.weight [I]   out_proj.weight [D, I]

Source: Dao & Gu 2024, "Transformers are SSMs", sections 6 and 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import refuse_counts_below_one
from kssm_mlx.models.layers import linear
from kssm_mlx.models.mamba import (
    Mamba,
    depthwise,
    padded_vocabulary,
    refuse_hybrid,
    time_step_bias,
)
from kssm_mlx.models.recurrent import pick_given, refuse_unless, require_field
from kssm_mlx.ops.conv import causal_conv
from kssm_mlx.ops.elementary import silu, softplus
from kssm_mlx.ops.norms import rms_norm
from kssm_mlx.ops.ssd import ssd


@dataclass(frozen=True)
class Mamba2Config:
    """num_heads head_dim channels; norm_before_gate: norm(y) silu(z) instead of norm(y silu(z))."""

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 6
    num_heads: int = 8
    head_dim: int = 32
    n_groups: int = 1
    state_size: int = 64
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    layer_norm_epsilon: float = 1e-5
    norm_before_gate: bool = False
    time_step_limit: tuple[float, float] = (0.0, float("inf"))
    residual_in_fp32: bool = True
    tie_word_embeddings: bool = True
    model_type: Literal["mamba2"] = "mamba2"

    def __post_init__(self):
        refuse_counts_below_one(self)
        if self.num_heads % self.n_groups:
            raise ConfigError(f"num_heads {self.num_heads} is not a multiple of n_groups {self.n_groups}")

    @property
    def channels(self) -> int:
        return self.num_heads * self.head_dim

    @classmethod
    def from_huggingface(cls, values: dict[str, Any]) -> Mamba2Config:
        """From a Hugging Face `config.json`. Raises: ConfigError for missing keys and unsupported values."""
        refuse_unless(values, "hidden_act", "silu", "swish")
        found = cls(
            vocab_size=require_field(values, "vocab_size"),
            hidden_size=require_field(values, "hidden_size"),
            num_hidden_layers=require_field(values, "num_hidden_layers"),
            num_heads=require_field(values, "num_heads"),
            head_dim=values.get("head_dim", 64),
            n_groups=values.get("n_groups", 8),
            state_size=values.get("state_size", 128),
            time_step_limit=limits(values.get("time_step_limit")),
            tie_word_embeddings=values.get("tie_word_embeddings", False),
            **pick_given(
                values, "conv_kernel", "use_bias", "use_conv_bias", "layer_norm_epsilon", "residual_in_fp32"
            ),
            **pick_given(values, "norm_before_gate"),
        )
        if "expand" in values and values["expand"] * found.hidden_size != found.channels:
            raise ConfigError(
                f"config.json has expand {values['expand']} times hidden_size {found.hidden_size}, which is "
                f"not num_heads {found.num_heads} times head_dim {found.head_dim}; one of them is wrong"
            )
        return found

    @classmethod
    def from_state_spaces(cls, values: dict[str, Any]) -> Mamba2Config:
        """From the `config.json` of the original state-spaces files (`d_model`, `n_layer`, `ssm_cfg`)."""
        refuse_hybrid(values)
        ssm, hidden = values.get("ssm_cfg") or {}, require_field(values, "d_model")
        refuse_unless(ssm, "layer", "Mamba2")
        refuse_unless(ssm, "D_has_hdim", False)
        head_dim = ssm.get("headdim", 64)
        return cls(
            vocab_size=padded_vocabulary(values),
            hidden_size=hidden,
            num_hidden_layers=require_field(values, "n_layer"),
            num_heads=int(ssm.get("expand", 2) * hidden) // head_dim,
            head_dim=head_dim,
            n_groups=ssm.get("ngroups", 1),
            state_size=ssm.get("d_state", 128),
            conv_kernel=ssm.get("d_conv", 4),
            use_bias=ssm.get("bias", False),
            use_conv_bias=ssm.get("conv_bias", True),
            norm_before_gate=ssm.get("norm_before_gate", False),
            time_step_limit=limits(ssm.get("dt_limit")),
            residual_in_fp32=values.get("residual_in_fp32", True),
            tie_word_embeddings=values.get("tie_embeddings", True),
        )


def limits(pair: Any) -> tuple[float, float]:
    """The least and the largest step; without any, no step is cut. Raises: ValueError for no pair."""
    low, high = (0.0, float("inf")) if pair is None else map(float, pair)
    return low, high


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"hidden_size": 64, "num_hidden_layers": 4, "num_heads": 4},
    "s": {"hidden_size": 128, "num_hidden_layers": 6, "num_heads": 8},
    "m": {"hidden_size": 384, "num_hidden_layers": 16, "num_heads": 12, "head_dim": 64},
    "l": {"hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24, "head_dim": 64, "state_size": 128},
}


def preset(size: str, vocab_size: int, context: int) -> Mamba2Config:
    """The configuration behind one word; the step sizes span 1 to 1000 tokens whatever the context is."""
    return Mamba2Config(vocab_size=vocab_size, **SIZES[size])


class GatedNorm(nn.Module):
    """norm(y silu(z)), or norm(y) silu(z), RMS over each group of channels. Shapes: y, z [..., I]."""

    def __init__(self, channels: int, groups: int, eps: float, before_gate: bool):
        super().__init__()
        self.weight = mx.ones((channels,))
        self._groups, self._eps, self._before_gate = groups, eps, before_gate

    def __call__(self, y: mx.array, z: mx.array) -> mx.array:
        # Gated and normed in fp32: the square of a bf16 product has two digits.
        gate = silu(z.astype(mx.float32))
        return self._norm(y) * gate if self._before_gate else self._norm(y * gate)

    def _norm(self, y: mx.array) -> mx.array:
        grouped, weight = (mx.unflatten(v, -1, (self._groups, -1)) for v in (y, self.weight))
        return rms_norm(grouped, weight, self._eps).flatten(-2)


class Mixer(nn.Module):
    """Token mixing: project, short convolution, SSD, gated norm, project."""

    def __init__(self, config: Mamba2Config, key: mx.array):
        super().__init__()
        D, I, H = config.hidden_size, config.channels, config.num_heads
        GN = config.n_groups * config.state_size
        keys = mx.random.split(key, 5)
        wide = 2 * I + 2 * GN + H
        self.in_proj = linear(keys[0], D, wide, std=(3 * D) ** -0.5, bias=config.use_bias)
        self.conv1d = depthwise(keys[1], I + 2 * GN, config.conv_kernel, config.use_conv_bias)
        self.dt_bias = time_step_bias(keys[2], H)
        # One rate a head, and heads are few: drawn, where Mamba's channels have each of 1, 2, ..., N.
        self.A_log = mx.log(mx.random.uniform(1, 16, (H,), key=keys[3]))
        self.D = mx.ones((H,))
        self.norm = GatedNorm(I, config.n_groups, config.layer_norm_epsilon, config.norm_before_gate)
        out_std = (3 * I * config.num_hidden_layers) ** -0.5
        self.out_proj = linear(keys[4], I, D, std=out_std, bias=config.use_bias)
        self._parts, self._conv_parts = [I, 2 * I + 2 * GN], [I, I + GN]
        self._groups, self._limit = config.n_groups, config.time_step_limit

    def __call__(self, x, entry, resets, lengths, tap=None, inside=None):
        """Shapes: x [B, T, D] -> y [B, T, D], new cache entry, trace. tap: see `mamba.Block`."""
        conv_state, state = entry
        z, u, dt = mx.split(self.in_proj(x), self._parts, axis=-1)
        kernel, bias = self.conv1d.weight[..., 0], self.conv1d.get("bias")
        u, conv_state = causal_conv(u, kernel, bias, conv_state, resets=resets, lengths=lengths)
        u, B, C = mx.split(silu(u), self._conv_parts, axis=-1)
        u = mx.unflatten(u, -1, (self.dt_bias.size, -1)).astype(mx.float32)
        dt = mx.clip(softplus(dt.astype(mx.float32) + self.dt_bias), *self._limit)
        if inside:
            dt, B, C = inside.detach_routing(dt), *(inside.detach_routing(v, self._groups) for v in (B, C))
        B, C = (mx.unflatten(v, -1, (self._groups, -1)) for v in (B, C))
        A = -mx.exp(self.A_log.astype(mx.float32))
        y, state = ssd(u, dt, A, B, C, state, resets=resets, lengths=lengths)
        y = (y + self.D[:, None] * u).flatten(-2)
        y = self.norm(tap(y) if tap else y, z)
        trace = {"dt": dt, "decay": mx.exp(dt * A), "state": state}
        y = inside.units(y, trace) if inside else y
        return self.out_proj(y.astype(x.dtype)), [conv_state, state], trace


class Mamba2(Mamba):
    """The language model; see `models.base.LanguageModel` for the interface.

    Cache: conv [B, W-1, I + 2GN], the convolution's last inputs; state [B, H, P, N], fp32.
    """

    fp32 = ("A_log", ".D", "dt_bias")
    no_decay = ("A_log", ".D", "bias", "norm.weight", "norm_f.weight", "conv1d.weight")
    no_quant = ("conv1d",)
    mixer_class = Mixer
