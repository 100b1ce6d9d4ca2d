"""The heads of every family: which slices of the mixers' parameters belong to unit u of U.

A unit's routing (G) decides where it looks and for how long, its slack (S) what it carries and puts out. What
no unit has for itself (a bias of the output, mixes over all channels, B and C of one group) is shared. Each
family is a table of claims: units split `width` rows from `offset` on along `axis` into equal parts.

    transformer  heads               mamba   contiguous channels    mamba2  SSM heads
    rwkv         contiguous channels rwkv7   heads                  kssm    populations

Mamba: x_proj's columns are what a unit contributes to Δ, B and C; B and C themselves stay common.

Source: docs/background/allostasis.md#freezing-units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import FAMILIES
from kssm_mlx.models.base import LanguageModel, flatten
from kssm_mlx.models.families.family import Claim

Mode = Literal["param", "route", "ablate", "coarse"]


class Part(NamedTuple):
    """A slice of one parameter of the model, along one axis."""

    path: str
    axis: int
    start: int
    stop: int


@dataclass(frozen=True)
class Units:
    """routing, slack: the parts of each unit, over all blocks; shared: what is left of the mixers."""

    routing: tuple[tuple[Part, ...], ...]
    slack: tuple[tuple[Part, ...], ...]
    shared: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.routing)


def units_of(model: LanguageModel, count: int = 4) -> Units:
    """The units of a model. Raises: ConfigError for a family without a table, or a count it cannot have."""
    tables = {name: family.units for name, family in FAMILIES.items() if family.units}
    if model.model_type not in tables:
        raise ConfigError(f"{model.model_type} has no freeze units; families that have: {', '.join(tables)}")
    mixer, finest, claims = tables[model.model_type](model.args, count)
    if not 1 <= count <= finest or finest % count:
        raise ConfigError(
            f"{model.model_type} has {finest} heads, channels or groups; {count} units cannot share them"
        )
    shapes = {name: array.shape for name, array in flatten(model.parameters()).items()}
    prefixes = [f"{name}.{mixer}." for name in block_paths(model)]
    parts = {
        role: tuple(
            tuple(
                _part(p, c, unit, count)
                for p in prefixes
                for c in claims
                if c.role == role and p + c.path in shapes
            )
            for unit in range(count)
        )
        for role in ("routing", "slack")
    }
    claimed = [part for units in parts.values() for unit in units for part in unit]
    own = {name: shape for name, shape in shapes.items() if name.startswith(tuple(prefixes))}
    return Units(parts["routing"], parts["slack"], tuple(_unclaimed_parts(own, claimed)))


def block_paths(model: LanguageModel) -> list[str]:
    """The paths of the blocks."""
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(block)] for block in model.layers]


def _part(prefix: str, claim: Claim, unit: int, count: int) -> Part:
    size = claim.width // count
    start = claim.offset + unit * size
    return Part(prefix + claim.path, claim.axis, start, start + size)


def _unclaimed_parts(shapes: dict[str, tuple[int, ...]], claimed: Iterable[Part]) -> Iterator[Part]:
    """The runs of each parameter that no part has."""
    taken: dict[str, list[Part]] = {}
    for part in claimed:
        taken.setdefault(part.path, []).append(part)
    for path, shape in shapes.items():
        axis = taken[path][0].axis if path in taken else 0
        free = np.ones(shape[axis], bool)
        for part in taken.get(path, ()):
            free[part.start : part.stop] = False
        edges = np.flatnonzero(np.diff(free, prepend=False, append=False))
        yield from (Part(path, axis, int(a), int(b)) for a, b in edges.reshape(-1, 2))


def freeze_masks(
    model: LanguageModel,
    frozen: Iterable[int],
    *,
    mode: Mode = "param",
    count: int = 4,
    shared: Literal["train", "freeze"] = "train",
) -> dict[str, mx.array]:
    """Parameter -> bool array that broadcasts to it, True where it may move; for `training.step.make_step`.

    mode: "coarse" (legacy) freezes whole mixers, whatever `frozen` says; the others freeze routing and slack
    of the units `frozen`, and `frozen_units` says what else they do in the forward pass.
    Raises: ConfigError for a unit that does not exist.
    """
    units, frozen = units_of(model, count), tuple(frozen)
    if not all(0 <= unit < count for unit in frozen):
        raise ConfigError(f"freeze units {list(frozen)}, but the units are 0 to {count - 1}")
    chosen = range(count) if mode == "coarse" else frozen
    parts = [part for unit in chosen for part in (*units.routing[unit], *units.slack[unit])]
    if mode == "coarse" or shared == "freeze":
        parts += units.shared
    return make_masks(model, parts)


def make_masks(model: LanguageModel, parts: Iterable[Part]) -> dict[str, mx.array]:
    """Masks that hold these parts."""
    shapes = {name: array.shape for name, array in flatten(model.parameters()).items()}
    moves: dict[str, np.ndarray] = {}
    for path, axis, start, stop in parts:
        shape = [1] * len(shapes[path])
        shape[axis] = shapes[path][axis]
        mask = moves.setdefault(path, np.ones(shape, bool))
        np.moveaxis(mask, axis, 0)[start:stop] = False
    return {path: mx.array(mask) for path, mask in moves.items()}


def free_routing(model: LanguageModel, held: dict[str, mx.array], count: int = 4) -> float:
    """G_free: the share of the routing parameters that may move under these masks."""
    shapes = {name: array.shape for name, array in flatten(model.parameters()).items()}
    free = total = 0
    for path, axis, start, stop in (part for unit in units_of(model, count).routing for part in unit):
        mask = np.broadcast_to(np.array(held.get(path, True)), shapes[path])
        part = np.moveaxis(mask, axis, 0)[start:stop]
        free, total = free + int(part.sum()), total + part.size
    return free / total
