"""What a graft is, in words: which core, at which site of which blocks; `make` turns it into modules.

`legacy = True` is what was published, defects included (phase_cores.py names them). Options with a range are
checked here, so a recipe is refused before anything is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import mlx.core as mx

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.models import FAMILIES
from kssm_mlx.models.base import refuse_counts_below_one
from kssm_mlx.models.grafts.phase_cores import CarriedCore, HookCore, LogitCore, PhaseBlock, PhaseCore
from kssm_mlx.models.recurrent import RecurrentModel
from kssm_mlx.parsing import adapter_of

Layers = int | tuple[int, ...] | Literal["all"] | None
Inside = Literal["residual", "mixer", "final"]


@dataclass(frozen=True)
class _Placed:
    """What the configurations share. layers: which blocks; None for the middle one, 12 of 24 and 32 of 64.

    module: the core that is built.
    """

    core: str
    site: Inside = "residual"
    layers: Layers = None
    legacy: bool = False

    module: ClassVar[Callable[..., PhaseCore]]

    def __post_init__(self):
        refuse_counts_below_one(self, section="model.graft")
        if self.site == "final" and self.layers is not None:
            raise ConfigError(
                f'model.graft.layers = {self.layers}, but site = "final" is behind all blocks; leave it out'
            )
        for name in ("dt", "sigma"):
            if not 0 <= getattr(self, name, 0.0) < math.inf:
                raise ConfigError(f"model.graft.{name} must be at least 0, got {getattr(self, name)}")

    def blocks(self, count: int) -> tuple[int, ...]:
        """Which of `count` blocks hold a core, in order.

        Raises: ConfigError for a block that the base model does not have.
        """
        if self.site in ("final", "logits"):
            return (count - 1,)
        if self.site == "embedding":
            return (0,)
        if self.layers == "all":
            return tuple(range(count))
        layers = count // 2 if self.layers is None else self.layers
        chosen = tuple(sorted({layers} if isinstance(layers, int) else {*layers}))
        if not chosen or not 0 <= chosen[0] <= chosen[-1] < count:
            raise ConfigError(
                f"model.graft.layers = {self.layers}, but the base model has blocks 0 to {count - 1}"
            )
        return chosen

    def make(self, base: RecurrentModel, key: mx.array) -> PhaseCore:
        return self.module(self, graft_channels(base, self.site), key)


@dataclass(frozen=True)
class HookGraft(_Placed):
    """`oscillators` phases."""

    core: Literal["hook", "coupled"] = "hook"
    oscillators: int = 16
    K: float = 2.0
    dt: float = 0.1
    sigma: float = 0.0

    def make(self, base: RecurrentModel, key: mx.array) -> PhaseCore:
        """`hook` works in training only, `coupled` and `simplified` never: so they were published."""
        acts = "always" if not self.legacy else "in training" if self.core == "hook" else "never"
        return HookCore(self, graft_channels(base, self.site), key, acts)


@dataclass(frozen=True)
class EmbeddingGraft(HookGraft):
    """The hook core on the embedded tokens."""

    core: Literal["simplified"] = "simplified"
    site: Literal["embedding"] = "embedding"
    layers: None = None


@dataclass(frozen=True)
class LogitGraft(HookGraft):
    """The hook core on the logits, seen through `width` channels."""

    core: Literal["logits"] = "logits"
    site: Literal["logits"] = "logits"
    layers: None = None
    width: int = 512

    def make(self, base: RecurrentModel, key: mx.array) -> PhaseCore:
        return LogitCore(self, base.args.vocab_size, key)


@dataclass(frozen=True)
class PhaseBlockGraft(_Placed):
    """One phase per channel, `steps` of size dt per token. rank: of the coupling."""

    core: Literal["phase_block"] = "phase_block"
    site: Inside = "mixer"
    rank: int = 32
    steps: int = 2
    dt: float = 0.08
    k_scale: float = 0.5
    sigma: float = 0.0

    module = PhaseBlock


@dataclass(frozen=True)
class CarriedGraft(_Placed):
    """`groups` populations. memory: tokens that the slowest should span at the start."""

    core: Literal["carried"] = "carried"
    legacy: Literal[False] = False
    groups: int = 64
    harmonics: int = 2
    memory: int = 128
    k_scale: float = 1.0

    module = CarriedCore


Graft = HookGraft | PhaseBlockGraft | CarriedGraft
GRAFTS: dict[str, type[Graft]] = {
    "carried": CarriedGraft,
    "hook": HookGraft,
    "coupled": HookGraft,
    "simplified": EmbeddingGraft,
    "logits": LogitGraft,
    "phase_block": PhaseBlockGraft,
}


def graft_channels(base: RecurrentModel, site: str) -> int:
    """The width of the base model's stream at a site."""
    inside = FAMILIES[base.model_type].graft_width if site == "mixer" else None
    return inside(base.args) if inside else base.args.hidden_size


def configure(values: dict[str, Any]) -> Graft:
    """The graft of a recipe's table, such as {"core": "carried", "layers": "all"}.

    Raises: ConfigError for an unknown core or option (naming the nearest), a wrong type or a count below 1.
    """
    from pydantic import ValidationError

    core = values.get("core", "carried")
    if not isinstance(core, str) or core not in GRAFTS:
        raise ConfigError(
            f"model.graft: no core {core!r}; cores are {', '.join(GRAFTS)}{nearest(str(core), GRAFTS)}"
        )
    known = [f.name for f in fields(GRAFTS[core])]
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown key 'model.graft.{name}' for {core}{nearest(name, known)}")
    try:
        # Strict, so that "3" is no number; by way of JSON, where a list is the only tuple.
        return adapter_of(GRAFTS[core]).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as e:
        error = e.errors()[0]
        raise ConfigError(
            f"model.graft.{error['loc'][0]}: {error['msg'].lower()}, got {values[str(error['loc'][0])]!r}"
        ) from None
