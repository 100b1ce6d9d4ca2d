"""Mamba (S6) and FalconMamba: a selective diagonal state-space model in every block, no attention, no MLP.

    u, z = W_in x;  u = silu(conv(u));  Δ, B, C = W_x u;  Δ = softplus(W_Δ Δ + b_Δ)
    y = selective_scan(u, Δ, A, B, C) + D u;  x + W_out (y · silu(z))

FalconMamba normalises Δ, B and C (RMS, no weight) before use. Parameter names are those of the Hugging Face
files; the only change is the axis order of the convolution:

    backbone.embeddings.weight [V, D]    backbone.norm_f.weight [D]    lm_head.weight [V, D], untied only
    backbone.layers.N.norm.weight [D]    backbone.layers.N.mixer.
        in_proj.weight [2I, D]    conv1d.weight [I, W, 1], there [I, 1, W]    conv1d.bias [I]
        x_proj.weight [R + 2N, I]    dt_proj.weight [I, R]    dt_proj.bias [I]    A_log [I, N]    D [I]
        out_proj.weight [D, I]    in_proj.bias and out_proj.bias where use_bias

Source: Gu & Dao 2023, "Mamba"; Zuo et al. 2024, "Falcon Mamba", section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import refuse_counts_below_one
from kssm_mlx.models.layers import RMSNorm, inverse_softplus, linear
from kssm_mlx.models.recurrent import EVERY_SITE, RecurrentModel, pick_given, refuse_unless, require_field
from kssm_mlx.ops.conv import causal_conv
from kssm_mlx.ops.elementary import silu, softplus
from kssm_mlx.ops.norms import rms_norm
from kssm_mlx.ops.selective_scan import selective_scan


@dataclass(frozen=True)
class MambaConfig:
    """intermediate_size: channels, 2 hidden_size when None; time_step_rank: hidden_size / 16 when None."""

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 6
    state_size: int = 16
    intermediate_size: int | None = None
    time_step_rank: int | None = None
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    layer_norm_epsilon: float = 1e-5
    mixer_rms_eps: float = 1e-6
    residual_in_fp32: bool = True
    tie_word_embeddings: bool = True
    model_type: Literal["mamba", "falcon_mamba"] = "mamba"

    def __post_init__(self):
        refuse_counts_below_one(self)

    @property
    def channels(self) -> int:
        return self.intermediate_size or 2 * self.hidden_size

    @property
    def rank(self) -> int:
        return self.time_step_rank or math.ceil(self.hidden_size / 16)

    @classmethod
    def from_huggingface(cls, values: dict[str, Any]) -> MambaConfig:
        """From a Hugging Face `config.json`. Raises: ConfigError for missing keys and unsupported values."""
        refuse_unless(values, "hidden_act", "silu", "swish")
        hidden = require_field(values, "hidden_size", "d_model")
        rank = values.get("time_step_rank", "auto")
        return cls(
            vocab_size=require_field(values, "vocab_size"),
            hidden_size=hidden,
            num_hidden_layers=require_field(values, "num_hidden_layers", "n_layer"),
            state_size=values.get("state_size", 16),
            intermediate_size=values.get("intermediate_size", int(values.get("expand", 2) * hidden)),
            time_step_rank=None if rank == "auto" else int(rank),
            model_type=values.get("model_type", "mamba"),
            **pick_given(values, *COMMON_FIELDS),
        )

    @classmethod
    def from_state_spaces(cls, values: dict[str, Any]) -> MambaConfig:
        """From the `config.json` of the original state-spaces files (`d_model`, `n_layer`, `ssm_cfg`)."""
        refuse_hybrid(values)
        ssm, hidden = values.get("ssm_cfg") or {}, require_field(values, "d_model")
        refuse_unless(ssm, "layer", "Mamba1")
        rank = ssm.get("dt_rank", "auto")
        return cls(
            vocab_size=padded_vocabulary(values),
            hidden_size=hidden,
            num_hidden_layers=require_field(values, "n_layer"),
            state_size=ssm.get("d_state", 16),
            intermediate_size=int(ssm.get("expand", 2) * hidden),
            time_step_rank=None if rank == "auto" else int(rank),
            conv_kernel=ssm.get("d_conv", 4),
            use_bias=ssm.get("bias", False),
            use_conv_bias=ssm.get("conv_bias", True),
            residual_in_fp32=values.get("residual_in_fp32", True),
            tie_word_embeddings=values.get("tie_embeddings", True),
        )


COMMON_FIELDS = (
    "conv_kernel",
    "use_bias",
    "use_conv_bias",
    "layer_norm_epsilon",
    "mixer_rms_eps",
    "residual_in_fp32",
    "tie_word_embeddings",
)


def refuse_hybrid(values: dict[str, Any]) -> None:
    """Raise ConfigError for state-spaces files with attention or MLP layers, or without RMS norm."""
    refuse_unless(values, "rms_norm", True)
    for key in ("attn_layer_idx", "d_intermediate"):
        if values.get(key):
            raise ConfigError(
                f"config.json has {key} = {values[key]!r}; hybrids with attention or MLPs are not read"
            )


def padded_vocabulary(values: dict[str, Any]) -> int:
    """The rows of the embedding: the vocabulary rounded up to a multiple of `pad_vocab_size_multiple`."""
    vocabulary, multiple = require_field(values, "vocab_size"), values.get("pad_vocab_size_multiple", 8)
    return -(-vocabulary // multiple) * multiple


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"hidden_size": 64, "num_hidden_layers": 4},
    "s": {"hidden_size": 128, "num_hidden_layers": 6},
    "m": {"hidden_size": 384, "num_hidden_layers": 16},
    "l": {"hidden_size": 768, "num_hidden_layers": 24},
}


def preset(size: str, vocab_size: int, context: int) -> MambaConfig:
    """The configuration behind one word; the step sizes span 1 to 1000 tokens whatever the context is."""
    return MambaConfig(vocab_size=vocab_size, **SIZES[size])


class Mixer(nn.Module):
    """Token mixing: project, short convolution, selective scan, gate, project."""

    def __init__(self, config: MambaConfig, key: mx.array):
        super().__init__()
        D, I, N, R = config.hidden_size, config.channels, config.state_size, config.rank
        keys = mx.random.split(key, 6)
        self.in_proj = linear(keys[0], D, 2 * I, std=(3 * D) ** -0.5, bias=config.use_bias)
        self.conv1d = depthwise(keys[1], I, config.conv_kernel, config.use_conv_bias)
        self.x_proj = linear(keys[2], I, R + 2 * N, std=(3 * I) ** -0.5)
        self.dt_proj = linear(keys[3], R, I, std=(3 * R) ** -0.5, bias=True)
        self.dt_proj.bias = time_step_bias(keys[4], I)
        # S4D-Real: the states of a channel forget at rates 1, 2, ..., N.
        self.A_log = mx.log(mx.broadcast_to(mx.arange(1, N + 1, dtype=mx.float32), (I, N)))
        self.D = mx.ones((I,))
        # By the root of the depth: the stream keeps its size however many blocks add to it.
        out_std = (3 * I * config.num_hidden_layers) ** -0.5
        self.out_proj = linear(keys[5], I, D, std=out_std, bias=config.use_bias)
        self._split = [R, R + N]
        self._norm_eps = config.mixer_rms_eps if config.model_type == "falcon_mamba" else None

    def __call__(self, x, entry, resets, lengths, tap=None, inside=None):
        """Shapes: x [B, T, D] -> y [B, T, D], new cache entry, trace. tap: see `Block`."""
        conv_state, state = entry
        u, z = mx.split(self.in_proj(x), 2, axis=-1)
        kernel, bias = self.conv1d.weight[..., 0], self.conv1d.get("bias")
        u, conv_state = causal_conv(u, kernel, bias, conv_state, resets=resets, lengths=lengths)
        u = silu(u)
        dt, B, C = mx.split(self.x_proj(inside.detach_routing(u) if inside else u), self._split, axis=-1)
        # Falcon-Mamba's remedy for spikes of the loss.
        if self._norm_eps is not None:
            dt, B, C = (rms_norm(v, None, self._norm_eps) for v in (dt, B, C))
        # fp32: bf16 would leave steps of .001 two digits.
        dt = softplus(self.dt_proj(dt).astype(mx.float32))
        dt = inside.detach_routing(dt) if inside else dt
        A = -mx.exp(self.A_log.astype(mx.float32))
        y, state = selective_scan(u, dt, A, B, C, state, resets=resets, lengths=lengths)
        y = y + self.D * u
        y = (tap(y) if tap else y) * silu(z)
        # Of the N states of a channel, the one that remembers longest.
        trace = {"dt": dt, "decay": mx.exp(dt * A.max(axis=-1)), "state": state}
        y = inside.units(y, trace) if inside else y
        return self.out_proj(y.astype(x.dtype)), [conv_state, state], trace


def depthwise(key: mx.array, channels: int, width: int, bias: bool) -> nn.Conv1d:
    """The parameters of a depthwise convolution, uniform within 1/sqrt(width); `causal_conv` runs it."""
    conv = nn.Conv1d(channels, channels, width, groups=channels, bias=bias)
    conv.weight = width**-0.5 * mx.random.uniform(-1, 1, (channels, width, 1), key=key)
    return conv


def time_step_bias(key: mx.array, n: int) -> mx.array:
    """b with softplus(b) log-uniform in [0.001, 0.1]: memories from ten to a thousand tokens. Shapes: [n]."""
    return inverse_softplus(mx.exp(mx.random.uniform(math.log(1e-3), math.log(0.1), (n,), key=key)))


class Block(nn.Module):
    """x + mixer(norm x), the stream in fp32 when the configuration says so.

    tap: what is done to the scan's output [B, T, I] before its gate and the output projection. inside: what
    an intervention does to the units of the mixer, see acts.py.
    """

    def __init__(self, config: MambaConfig, mixer: nn.Module):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = mixer

    def __call__(self, x, entry, carried, resets, lengths, tap=None, inside=None):
        # The stream may be fp32 beside weights in bf16.
        x_normed = self.norm(x.astype(self.norm.weight.dtype))
        y, entry, trace = self.mixer(x_normed, entry, resets, lengths, tap, inside)
        return x + y, entry, carried, trace


class Backbone(nn.Module):
    """The tree that the files call `backbone`."""

    def __init__(self, config: MambaConfig, mixer_class: Callable[..., nn.Module], key: mx.array):
        super().__init__()
        keys = mx.random.split(key, config.num_hidden_layers + 1)
        V, D = config.vocab_size, config.hidden_size
        self.embeddings = nn.Embedding(V, D)
        self.embeddings.weight = 0.02 * mx.random.normal((V, D), key=keys[0])
        self.layers = [Block(config, mixer_class(config, k)) for k in keys[1:]]
        self.norm_f = RMSNorm(D, config.layer_norm_epsilon)


class Mamba(RecurrentModel):
    """The language model; see `models.base.LanguageModel` for the interface.

    Cache: conv [B, W-1, I], the convolution's last inputs; state [B, I, N], fp32.
    """

    slots = ("conv", "state")
    act_sites = EVERY_SITE
    fp32 = ("A_log", ".D", "dt_proj.bias")
    no_decay = ("A_log", ".D", "bias", "norm.weight", "norm_f.weight", "conv1d.weight")
    no_quant = ("x_proj", "dt_proj", "conv1d")
    mixer_class: Callable[..., nn.Module] = Mixer

    def __init__(self, config: MambaConfig, seed: int = 0):
        super().__init__(config)
        k_backbone, k_head = mx.random.split(mx.random.key(seed))
        self.backbone = Backbone(config, self.mixer_class, k_backbone)
        if not config.tie_word_embeddings:
            self.lm_head = linear(k_head, config.hidden_size, config.vocab_size, std=0.02)

    def embed(self, tokens: mx.array) -> mx.array:
        x = self.backbone.embeddings(tokens)
        return x.astype(mx.float32) if self.args.residual_in_fp32 else x

    def finish(self, x: mx.array) -> mx.array:
        return self.backbone.norm_f(x).astype(self.backbone.norm_f.weight.dtype)

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        tied = self.args.tie_word_embeddings
        return self.backbone.embeddings.as_linear(hidden) if tied else self.lm_head(hidden)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.backbone.layers

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Hugging Face, mlx-lm or our layout -> ours: convolutions as [I, W, 1]; no head where it is tied."""
        tied = self.args.tie_word_embeddings
        return {
            name: value.moveaxis(2, 1) if name.endswith("conv1d.weight") and value.shape[-1] != 1 else value
            for name, value in weights.items()
            if not (tied and name == "lm_head.weight")
        }
