"""A gated recurrent unit in a residual block: the classical recurrence, dense and serial, as a baseline.

    z = sigmoid(W_z u + U_z h)   r = sigmoid(W_r u + U_r h)   n = tanh(W_n u + r U_n h)   h <- (1 - z) n + z h

`cell = "tanh"` leaves the gates out, h <- tanh(W u + U h): the Elman network. Both mix all units in every
token, which no diagonal state does; and no scan makes them parallel over time, so they are slow to train.

Source: Cho et al. 2014, arXiv 1406.1078; Elman 1990.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.base import refuse_counts_below_one
from kssm_mlx.models.layers import GatedMLP, RMSNorm, linear
from kssm_mlx.models.recurrent import Stack
from kssm_mlx.ops.elementary import sigmoid


@dataclass(frozen=True)
class GRUConfig:
    """state_size: units of the recurrence, d_model when None. mlp_hidden: 0 for a block without an MLP."""

    vocab_size: int
    d_model: int = 128
    n_layers: int = 3
    state_size: int | None = None
    mlp_hidden: int = 176
    cell: Literal["gru", "tanh"] = "gru"
    tie_embeddings: bool = False
    norm_eps: float = 1e-6
    model_type: Literal["gru"] = "gru"

    def __post_init__(self):
        refuse_counts_below_one(self, "mlp_hidden")

    @property
    def units(self) -> int:
        return self.state_size or self.d_model


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"d_model": 64, "n_layers": 2, "mlp_hidden": 96},
    "s": {"d_model": 128, "n_layers": 3, "mlp_hidden": 176},
    "m": {"d_model": 384, "n_layers": 8, "mlp_hidden": 768},
    "l": {"d_model": 768, "n_layers": 16, "mlp_hidden": 1536},
}


def preset(size: str, vocab_size: int, context: int) -> GRUConfig:
    """The configuration behind one word; a dense recurrence has no time scales that a context could set."""
    return GRUConfig(vocab_size=vocab_size, **SIZES[size])


class Recurrence(nn.Module):
    """Shapes: x [B, T, D], state [B, H] or None -> y [B, T, D], state [B, H], trace."""

    def __init__(self, config: GRUConfig, key: mx.array):
        super().__init__()
        D, H = config.d_model, config.units
        gates = 3 if config.cell == "gru" else 1
        k_in, k_state, k_out = mx.random.split(key, 3)
        self.inputs = linear(k_in, D, gates * H, bias=True)
        self.recurrent = linear(k_state, H, gates * H, std=H**-0.5)
        self.output = linear(k_out, H, D, std=(2 * config.n_layers * H) ** -0.5)
        self._step = _step_gated if config.cell == "gru" else _step_plain

    def __call__(self, x, state, resets, lengths):
        drive = self.inputs(x)
        h = mx.zeros((x.shape[0], self.recurrent.weight.shape[1])) if state is None else state
        states = []
        for t in range(x.shape[1]):
            start = h if resets is None else mx.where(resets[:, t, None], 0, h)
            new = self._step(drive[:, t], self.recurrent(start), start)
            h = new if lengths is None else mx.where((t < lengths)[:, None], new, h)
            states.append(new)
        return self.output(mx.stack(states, axis=1)), h, {"state": h}


def _step_gated(drive: mx.array, fed_back: mx.array, h: mx.array) -> mx.array:
    x_reset, x_keep, x_new = mx.split(drive, 3, axis=-1)
    h_reset, h_keep, h_new = mx.split(fed_back, 3, axis=-1)
    new = mx.tanh(x_new + sigmoid(x_reset + h_reset) * h_new)
    keep = sigmoid(x_keep + h_keep)
    return (1 - keep) * new + keep * h


def _step_plain(drive: mx.array, fed_back: mx.array, h: mx.array) -> mx.array:
    return mx.tanh(drive + fed_back)


class Block(nn.Module):
    """x + recurrence(norm x), then x + mlp(norm x)."""

    def __init__(self, config: GRUConfig, key: mx.array):
        super().__init__()
        k_mixer, k_mlp = mx.random.split(key)
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Recurrence(config, k_mixer)
        if config.mlp_hidden:
            self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
            out_std = (2 * config.n_layers * config.mlp_hidden) ** -0.5
            self.mlp = GatedMLP(k_mlp, config.d_model, config.mlp_hidden, out_std)

    def __call__(self, x, entry, carried, resets, lengths):
        y, state, trace = self.mixer(self.mixer_norm(x), entry[0], resets, lengths)
        x = x + y
        x = x + self.mlp(self.mlp_norm(x)) if "mlp" in self else x
        return x, [state], carried, trace


class GRU(Stack):
    """The language model; see `models.base.LanguageModel` for the interface. Cache: state [B, H]."""

    slots = ("state",)
    fp32: tuple[str, ...] = ()
    no_decay = ("bias", "norm.weight")
    no_quant: tuple[str, ...] = ()

    def __init__(self, config: GRUConfig, seed: int = 0):
        super().__init__(config)
        keys = mx.random.split(mx.random.key(seed), config.n_layers + 2)
        V, D = config.vocab_size, config.d_model
        self.embedding = nn.Embedding(V, D)
        self.embedding.weight = D**-0.5 * mx.random.normal((V, D), key=keys[0])
        self.blocks = [Block(config, keys[2 + i]) for i in range(config.n_layers)]
        self.norm = RMSNorm(D, config.norm_eps)
        if not config.tie_embeddings:
            self.head = linear(keys[1], D, V, std=0.1 * D**-0.5)

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        if self.args.tie_embeddings:
            return self.args.d_model**-0.5 * self.embedding.as_linear(hidden)
        return self.head(hidden)
