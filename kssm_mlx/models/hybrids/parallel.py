"""RWKV ⊕ Mamba-2: both mixers read the same stream, and a fusion makes one of what they say.

    P    n = norm x;  x + fuse(rwkv n, mamba n);  x + W_2 gelu(W_1 norm x)
    R    x + rwkv(norm x), then the same feed-forward;   M likewise with mamba

`pattern` names the kinds of the blocks and is repeated over the layers: "P" parallel blocks throughout, "RM"
R-M-R-M, "RRRM" three to one, "R" and "M" the pure baselines, from the same code and with the same
feed-forward. The mixers are those of rwkv7.py and mamba2.py, pure ones: neither has a feed-forward or a
residual of its own, and both begin equally loud. `rwkv = "published"` (legacy) is GroundThink's
branch, which has both, so that its R drowns its M by construction (hybrid_published.py).
Parameters carry their component in their names: `blocks.N.{rwkv,mamba,fusion,mlp}.`.

Source: the public GroundThink project, version 4; fusions.py lists its fusions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import mamba2, rwkv7
from kssm_mlx.models.base import Clamp, Intervention, hold, refuse_counts_below_one
from kssm_mlx.models.hybrids.fusions import FUSIONS
from kssm_mlx.models.hybrids.published_rwkv import PublishedRWKV
from kssm_mlx.models.layers import MLP, RMSNorm, linear
from kssm_mlx.models.recurrent import Stack


@dataclass(frozen=True)
class HybridConfig:
    """share: of the RWKV branch at the start, in every fusion but "cp" and "rf" (fusions.py).

    head_dim: of RWKV's heads; Mamba's are mamba_head_dim wide and have expand d_model channels in all.
    """

    vocab_size: int
    d_model: int = 128
    n_layers: int = 8
    pattern: str = "P"
    fusion: Literal["hy", "fixed", "ws", "gf", "hgf", "cp", "rf", "gru", "mingru"] = "gf"
    share: float = 0.5
    rwkv: Literal["rwkv7", "published"] = "rwkv7"
    head_dim: int = 32
    mamba_head_dim: int = 64
    state_size: int = 64
    conv_kernel: int = 4
    expand: int = 2
    mlp_ratio: int = 4
    tie_embeddings: bool = True
    norm_eps: float = 1e-6
    model_type: Literal["hybrid"] = "hybrid"

    def __post_init__(self):
        refuse_counts_below_one(self)
        if not self.pattern or set(self.pattern) - set("RMP"):
            raise ConfigError(f'model.pattern is made of R, M and P, such as "RM", got {self.pattern!r}')
        if len(self.pattern) > self.n_layers:
            raise ConfigError(
                f"model.pattern {self.pattern!r} is longer than n_layers {self.n_layers}; it is never cut"
            )
        if not 0 < self.share < 1:
            raise ConfigError(f"model.share is between 0 and 1, got {self.share}")
        self._refuse_unused()
        for name, channels in (("head_dim", self.d_model), ("mamba_head_dim", self.expand * self.d_model)):
            if channels % getattr(self, name):
                raise ConfigError(f"model.{name} {getattr(self, name)} does not divide {channels} channels")

    def _refuse_unused(self) -> None:
        """Raises: ConfigError for an option that no block of the pattern reads."""
        fused = "P" in self.pattern
        blends = fused and self.fusion not in ("cp", "rf")
        for name, used in {"fusion": fused, "share": blends, "rwkv": fused or "R" in self.pattern}.items():
            if not used and getattr(self, name) != getattr(HybridConfig, name):
                raise ConfigError(
                    f"model.{name} = {getattr(self, name)!r} does nothing with pattern {self.pattern!r} and "
                    f"fusion {self.fusion!r}; leave it out"
                )

    @property
    def kinds(self) -> str:
        """The kind of each layer's block."""
        return (self.pattern * self.n_layers)[: self.n_layers]

    @property
    def mamba_part(self) -> mamba2.Mamba2Config:
        return mamba2.Mamba2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            num_hidden_layers=self.n_layers,
            num_heads=self.expand * self.d_model // self.mamba_head_dim,
            head_dim=self.mamba_head_dim,
            state_size=self.state_size,
            conv_kernel=self.conv_kernel,
        )

    @property
    def rwkv_part(self) -> rwkv7.RWKV7Config:
        """Its layers are those that have an RWKV mixer: the first of them is RWKV-7's first layer."""
        ranks: dict[str, Any] = {
            name: rwkv7.low_rank(self.d_model, factor) for name, factor in rwkv7.LOW_RANKS.items()
        }
        return rwkv7.RWKV7Config(
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            num_hidden_layers=sum(kind in "RP" for kind in self.kinds),
            head_dim=self.head_dim,
            **ranks,
        )


SIZES: dict[str, dict[str, Any]] = {
    "xs": {"d_model": 64, "n_layers": 4},
    "s": {"d_model": 128, "n_layers": 8},
    "m": {"d_model": 192, "n_layers": 8},
    "l": {"d_model": 192, "n_layers": 12},
}


def preset(size: str, vocab_size: int, context: int) -> HybridConfig:
    """The configuration behind one word: the published TINY, SMALL, MEDIUM and create_8m.

    With rwkv = "published" and 97 characters, MEDIUM has 7.93 million parameters with its fusion "gf", whose
    gate began at share = 0.3; create_8m has 11.9 million with "hy". The symmetric ones have 6.1 and 9.1.
    """
    return HybridConfig(vocab_size=vocab_size, **SIZES[size])


class RWKV(rwkv7.TimeMixing):
    """RWKV-7's time mixing, which begins as loud as Mamba's: unit RMS before an equal output projection.

    RWKV-7 itself starts with an output of zeros, which a norm or a gate behind it could not tell from none.
    """

    slots = ("shift", "rwkv")

    def __init__(self, config: HybridConfig, key: mx.array, layer: int):
        k_mixing, k_gate, k_out, *keys = mx.random.split(key, 6)
        part, D = config.rwkv_part, config.d_model
        super().__init__(part, k_mixing, layer)
        for name, k in zip("rkv", keys):
            setattr(self, f"{name}_proj", linear(k, D, D))
        self.g_norm.weight = mx.ones((D,))
        low = part.gate_low_rank_dim  # of sigmoids that begin at 1/2
        self.g_lora.lora[2] = linear(k_gate, low, D, std=2 * low**-0.5)
        self.o_proj = linear(k_out, D, D, std=(3 * D * config.n_layers) ** -0.5)

    def __call__(self, x, entry, v_first, resets, lengths):
        shift, state = entry
        y, shift, state, v_first, trace = super().__call__(x, shift, state, v_first, resets, lengths)
        return y, [shift, state], v_first, trace


class Mamba(mamba2.Mixer):
    """Mamba-2's mixer, which has no use for the values of the first layer."""

    slots = ("conv", "mamba")

    def __call__(self, x, entry, v_first, resets, lengths):
        y, entry, trace = super().__call__(x, entry, resets, lengths)
        return y, entry, v_first, trace


class Block(nn.Module):
    """One or two mixers, fused, and a feed-forward, each added to the stream."""

    def __init__(self, config: HybridConfig, key: mx.array, layer: int):
        super().__init__()
        kind, D, hidden = config.kinds[layer], config.d_model, config.mlp_ratio * config.d_model
        k_rwkv, k_mamba, k_fusion, k_mlp = mx.random.split(key, 4)
        self.mixer_norm, self.mlp_norm = RMSNorm(D, config.norm_eps), RMSNorm(D, config.norm_eps)
        if kind in "MP":
            self.mamba = Mamba(config.mamba_part, k_mamba)
        if kind in "RP":
            # RWKV-7's first layer gives the others its values, so that its layers are counted without
            # Mamba's.
            nth = sum(k in "RP" for k in config.kinds[:layer])
            mixer = RWKV if config.rwkv == "rwkv7" else PublishedRWKV
            self.rwkv = mixer(config, k_rwkv, nth)
        if kind == "P":
            self.fusion = FUSIONS[config.fusion](k_fusion, D, config.share)
        self.mlp = MLP(k_mlp, D, hidden, out_std=(2 * config.n_layers * hidden) ** -0.5)

    @property
    def slots(self) -> tuple[str, ...]:
        return sum((self[part].slots for part in ("mamba", "rwkv", "fusion") if part in self), ())

    def __call__(self, x, entry, v_first, resets, lengths, clamps: tuple[Clamp, ...] = ()):
        n, entry, new, said, trace = self.mixer_norm(x), iter(entry), [], {}, {}
        for name in ("mamba", "rwkv"):
            if name in self:
                own = [next(entry) for _ in self[name].slots]
                y, own, v_first, seen = self[name](n, own, v_first, resets, lengths)
                said[name] = y = hold(y, [c for c in clamps if c.site == name])
                new += own
                trace |= seen | {f"{name}_{what}": seen[what] for what in ("state", "decay")}
        if "fusion" in self:
            y, own, share = self.fusion(said["rwkv"], said["mamba"], list(entry), resets, lengths)
            new += own
            if share is not None:
                trace["gate"] = mx.broadcast_to(share, (*x.shape[:2], *(share.shape[-1:] or (1,))))
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), new, v_first, trace | said


class Hybrid(Stack):
    """The language model; see `models.base.LanguageModel` for the interface.

    Cache, for what a block has: conv [B, W-1, C] and mamba [B, H, P, N]; shift [B, D] and rwkv [B, H, K, K];
    arbiter [B, width]. Every state is an array of its entry, in the order of `slots_of`, and can be set.
    Clamp sites "rwkv" and "mamba": a branch's output before the fusion; 0 takes the branch out.
    """

    slots = ("conv", "mamba", "shift", "rwkv", "arbiter")
    clamp_sites = ("rwkv", "mamba", "output")
    fp32 = (*mamba2.Mamba2.fp32, *rwkv7.RWKV7.fp32)
    no_quant = (*mamba2.Mamba2.no_quant, *rwkv7.RWKV7.no_quant, "gate")
    no_decay = (
        *mamba2.Mamba2.no_decay,
        *rwkv7.RWKV7.no_decay,
        *("norm_rwkv.weight", "norm_mamba.weight", "gain_rwkv", "gain_mamba", "share"),
    )

    def __init__(self, config: HybridConfig, seed: int = 0):
        super().__init__(config)
        keys = mx.random.split(mx.random.key(seed), config.n_layers + 2)
        V, D = config.vocab_size, config.d_model
        self.embedding = nn.Embedding(V, D)
        self.embedding.weight = 0.02 * mx.random.normal((V, D), key=keys[0])
        self.blocks = [Block(config, key, i) for i, key in enumerate(keys[2:])]
        self.norm = RMSNorm(D, config.norm_eps)
        if not config.tie_embeddings:
            self.head = linear(keys[1], D, V, std=0.02)

    def slots_of(self, i: int) -> tuple[str, ...]:
        return self.blocks[i].slots

    def runner(self, i: int, intervention: Intervention | None):
        clamps = () if intervention is None else (*intervention.of("rwkv", i), *intervention.of("mamba", i))
        return partial(super().runner(i, intervention), clamps=clamps)
