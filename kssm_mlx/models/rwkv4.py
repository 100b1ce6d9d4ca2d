"""RWKV-4: a decaying average of values per channel (WKV), behind token shift and a receptance gate.

    time mixing     k, v, r = W (x μ + x_{t-1} (1 - μ));   x + W_o (σ(r) · wkv(w, u, k, v))
    channel mixing  k, r likewise;                         x + σ(r) · W_v relu(k)²

Parameter names are those of the Hugging Face files (`RwkvForCausalLM`), shapes included:

    rwkv.embeddings.weight [V, D]   rwkv.ln_out.{weight,bias} [D]   head.weight [V, D], absent where tied
    rwkv.blocks.N.{ln1,ln2}.{weight,bias} [D]   rwkv.blocks.0.pre_ln.{weight,bias} [D]
    rwkv.blocks.N.attention.  time_decay [A], w = -exp(time_decay)   time_first [A], u
        time_mix_{key,value,receptance} [1, 1, D]
        {key,value,receptance}.weight [A, D]   output.weight [D, A]
    rwkv.blocks.N.feed_forward.  time_mix_{key,receptance} [1, 1, D]
        key.weight [F, D]   receptance.weight [D, D]   value.weight [D, F]

Source: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import refuse_counts_below_one
from kssm_mlx.models.interventions.spec import LEAST
from kssm_mlx.models.layers import LayerNorm, linear
from kssm_mlx.models.recurrent import EVERY_SITE, RecurrentModel, orthogonal, pick_given, require_field
from kssm_mlx.ops.elementary import relu2, sigmoid
from kssm_mlx.ops.token_mix import token_mix
from kssm_mlx.ops.wkv4 import EMPTY, WKV4State, wkv4


@dataclass(frozen=True)
class RWKV4Config:
    """rescale_every: halve the stream after every so many blocks, and with it what later blocks add, so that
    fp16 does not overflow; 0 for never. The layer norms undo it, so in fp32 the logits do not change.
    weights_rescaled: the file was saved after such a division, so the additions are small already.
    """

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 3
    attention_hidden_size: int | None = None
    intermediate_size: int | None = None
    layer_norm_epsilon: float = 1e-5
    rescale_every: int = 0
    weights_rescaled: bool = False
    tie_word_embeddings: bool = False
    model_type: Literal["rwkv"] = "rwkv"

    def __post_init__(self):
        refuse_counts_below_one(self, "rescale_every")

    @property
    def channels(self) -> int:
        return self.attention_hidden_size or self.hidden_size

    @property
    def wide(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @classmethod
    def from_huggingface(cls, values: dict[str, Any]) -> RWKV4Config:
        """From a Hugging Face `config.json`. Raises: ConfigError for missing keys."""
        return cls(
            vocab_size=require_field(values, "vocab_size"),
            hidden_size=require_field(values, "hidden_size"),
            num_hidden_layers=require_field(values, "num_hidden_layers"),
            rescale_every=max(0, values.get("rescale_every", 6)),
            **pick_given(values, "attention_hidden_size", "intermediate_size", "layer_norm_epsilon"),
            **pick_given(values, "weights_rescaled", "tie_word_embeddings"),
        )


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"hidden_size": 64, "num_hidden_layers": 2},
    "s": {"hidden_size": 128, "num_hidden_layers": 3},
    "m": {"hidden_size": 384, "num_hidden_layers": 8},
    "l": {"hidden_size": 768, "num_hidden_layers": 12},
}


def preset(size: str, vocab_size: int, context: int) -> RWKV4Config:
    """The configuration behind one word; decays span all time scales whatever the context is."""
    return RWKV4Config(vocab_size=vocab_size, **SIZES[size])


class TimeMixing(nn.Module):
    """The attention of RWKV. Shapes: x [B, T, D] -> y [B, T, D], shift, WKV state, trace.

    tap: what is done to the weighted average [B, T, A] before the receptance gate and the output projection.
    """

    def __init__(self, config: RWKV4Config, key: mx.array, depth: float, layer: int):
        super().__init__()
        D, A = config.hidden_size, config.channels
        ratio = 1 - layer / config.num_hidden_layers
        channel = mx.arange(A) / max(A - 1, 1)
        # As the authors begin: slow and fast channels in every layer, more slow ones in the deeper.
        self.time_decay = -5 + 8 * channel ** (0.7 + 1.3 * depth)
        self.time_first = mx.log(mx.array(0.3)) + 0.5 * ((mx.arange(A) + 1) % 3 - 1)
        position = (mx.arange(D) / D)[None, None]
        self.time_mix_key = position**ratio
        self.time_mix_value = position**ratio + 0.3 * depth
        self.time_mix_receptance = position ** (0.5 * ratio)
        self.key = linear(key, D, A, std=0.0)
        self.value = linear(key, D, A)
        self.value.weight = orthogonal(key, A, D)
        self.receptance = linear(key, D, A, std=0.0)
        # Zero: every block begins as the identity.
        self.output = linear(key, A, D, std=0.0)

    def __call__(self, x, shift, state, resets, lengths, tap=None, inside=None):
        names = ("time_mix_key", "time_mix_value", "time_mix_receptance")
        (xk, xv, xr), shift = token_mix(x, weigh_past(self, names), shift, resets=resets, lengths=lengths)
        k, v, r = self.key(xk), self.value(xv), sigmoid(self.receptance(xr))
        k, r = (inside.detach_routing(z) for z in (k, r)) if inside else (k, r)
        w = -mx.exp(self.time_decay.astype(mx.float32))
        y, state = wkv4(w, self.time_first, k, v, state, resets=resets, lengths=lengths)
        y = r * (tap(y) if tap else y).astype(x.dtype)
        trace = {"decay": mx.exp(w), "state": mx.stack(state, axis=1)}
        return self.output(inside.units(y, trace) if inside else y), shift, state, trace


class ChannelMixing(nn.Module):
    """The feed-forward of RWKV. Shapes: x [B, T, D] -> y [B, T, D], shift."""

    def __init__(self, config: RWKV4Config, key: mx.array, layer: int):
        super().__init__()
        D, F = config.hidden_size, config.wide
        position = (mx.arange(D) / D)[None, None]
        self.time_mix_key = position ** (1 - layer / config.num_hidden_layers)
        self.time_mix_receptance = self.time_mix_key
        self.key = linear(key, D, F)
        self.key.weight = orthogonal(key, F, D, gain=max(1.0, (F / D) ** 0.5))
        self.receptance = linear(key, D, D, std=0.0)
        self.value = linear(key, F, D, std=0.0)

    def __call__(self, x, shift, resets, lengths):
        names = ("time_mix_key", "time_mix_receptance")
        (xk, xr), shift = token_mix(x, weigh_past(self, names), shift, resets=resets, lengths=lengths)
        return sigmoid(self.receptance(xr)) * self.value(relu2(self.key(xk))), shift


def weigh_past(module: nn.Module, names: Sequence[str]) -> mx.array:
    """1 - μ, the shares of the token before; μ are those of the token itself. Shapes: [len(names), D]."""
    return 1 - mx.concatenate([module[name].reshape(1, -1) for name in names])


class Block(nn.Module):
    """x + time mixing (norm x), then x + channel mixing (norm x), both divided by `divisor` on the way in."""

    def __init__(self, config: RWKV4Config, key: mx.array, layer: int):
        super().__init__()
        D, eps, L = config.hidden_size, config.layer_norm_epsilon, config.num_hidden_layers
        k_attention, k_feed_forward = mx.random.split(key)
        if layer == 0:
            self.pre_ln = LayerNorm(D, eps)
        self.ln1, self.ln2 = LayerNorm(D, eps), LayerNorm(D, eps)
        self.attention = TimeMixing(config, k_attention, layer / max(L - 1, 1), layer)
        self.feed_forward = ChannelMixing(config, k_feed_forward, layer)
        # Against overflow in fp16: the stream is halved every few blocks, and what is added to it as often.
        # Norms do not see it.
        every = config.rescale_every
        divided = every > 0 and not config.weights_rescaled
        self._divisor = 2 ** (layer // every) if divided else 1
        self._halve = every > 0 and (layer + 1) % every == 0

    def __call__(self, x, entry, carried, resets, lengths, tap=None, inside=None):
        shift, ffn_shift, *sums = entry
        state = None if sums[0] is None else _blank_rows(WKV4State(*sums))
        if "pre_ln" in self:
            x = self.pre_ln(x)
        y, shift, state, trace = self.attention(self.ln1(x), shift, state, resets, lengths, tap, inside)
        x = x + y / self._divisor
        y, ffn_shift = self.feed_forward(self.ln2(x), ffn_shift, resets, lengths)
        x = x + y / self._divisor
        return x / 2 if self._halve else x, [shift, ffn_shift, *state], carried, trace


def _blank_rows(state: WKV4State) -> WKV4State:
    """Sums of nothing have no exponent: mlx-lm gives a row that joins a running batch zeros for its state."""
    return state._replace(max=mx.where(state.den > 0, state.max, EMPTY))


class Backbone(nn.Module):
    """The tree that the files call `rwkv`."""

    def __init__(self, config: RWKV4Config, key: mx.array):
        super().__init__()
        keys = mx.random.split(key, config.num_hidden_layers + 1)
        V, D = config.vocab_size, config.hidden_size
        self.embeddings = nn.Embedding(V, D)
        # Tiny: the first layer norm sets the scale, and every embedding can still turn anywhere.
        self.embeddings.weight = mx.random.uniform(-1e-4, 1e-4, (V, D), key=keys[0])
        self.blocks = [Block(config, k, i) for i, k in enumerate(keys[1:])]
        self.ln_out = LayerNorm(D)


class RWKV4(RecurrentModel):
    """The language model; see `models.base.LanguageModel` for the interface.

    Cache: shift and ffn_shift [B, D], the last inputs of the two mixers; num, den, max [B, A], fp32.
    """

    slots = ("shift", "ffn_shift", "num", "den", "max")
    act_sites = EVERY_SITE
    fp32 = ("time_decay", "time_first")
    no_decay = (
        *("time_decay", "time_first", "time_mix_key", "time_mix_value", "time_mix_receptance"),
        *("bias", "ln1.weight", "ln2.weight", "pre_ln.weight", "ln_out.weight"),
    )
    no_quant: tuple[str, ...] = ()

    def __init__(self, config: RWKV4Config, seed: int = 0):
        super().__init__(config)
        k_backbone, k_head = mx.random.split(mx.random.key(seed))
        self.rwkv = Backbone(config, k_backbone)
        if not config.tie_word_embeddings:
            V, D = config.vocab_size, config.hidden_size
            self.head = linear(k_head, D, V)
            self.head.weight = orthogonal(k_head, V, D, gain=0.5 * max(1.0, (V / D) ** 0.5))

    def state_view(self, entry: list) -> mx.array:
        """The weighted average that stands in the two sums. Shapes: -> [B, A]."""
        # A row that has read nothing has sums of zero.
        return entry[2] / mx.maximum(entry[3], LEAST)

    def with_state(self, entry: list, view: mx.array) -> list:
        return [*entry[:2], view * entry[3], *entry[3:]]

    def embed(self, tokens: mx.array) -> mx.array:
        return self.rwkv.embeddings(tokens)

    def finish(self, x: mx.array) -> mx.array:
        return self.rwkv.ln_out(x)

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        tied = self.args.tie_word_embeddings
        return self.rwkv.embeddings.as_linear(hidden) if tied else self.head(hidden)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.rwkv.blocks

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Hugging Face or our layout -> ours: they are the same, but for a tied head, which is dropped."""
        tied = self.args.tie_word_embeddings
        return {name: value for name, value in weights.items() if not (tied and name == "head.weight")}
