"""What a family is to the rest of the package: one record of facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple

from kssm_mlx.models.families.config_keys import ConfigKeys

KeyMap = Mapping[str, tuple[str, str]]  # name in a file -> (name in our model, name of a transform)


class Claim(NamedTuple):
    """Rows offset ... offset + width of one parameter of a mixer, divided among the freeze units."""

    role: Literal["routing", "slack"]
    path: str
    axis: int
    offset: int
    width: int


class UnitTable(NamedTuple):
    """mixer: its path in a block; finest: the most units there can be; claims: what each has a share of."""

    mixer: str
    finest: int
    claims: list[Claim]


@dataclass(frozen=True)
class Family:
    """Where a family lives and what is known of it.

    module, config, model: the module below `kssm_mlx.models`, its configuration and model class, imported
    when first asked for.
    architecture: the class of transformers that runs its "hf" export; None where there is none.
    key_maps: layout of a file -> table of names, total on both sides; a family without any has files in its
    own names only. `{N}` stands for the number of a block.
    unread: layout -> tensors that a source stores and its own code never reads.
    config_keys: layout -> what the keys of a foreign configuration are; without any, only our own are read.
    derived: configuration -> keys of config.json that transformers asks for and we derive.
    units: (configuration, number of units) -> which slices of the mixer belong to a freeze unit.
    graft_width: configuration -> width of the stream inside the mixer, where a graft may sit; None for a
    family that takes no graft.
    bench: width of a benchmark -> options beside width and depth.
    width: the key that sets the number of parameters, and the step it goes in; fine: one that sets the rest,
    by which arms of an experiment are given equal numbers of parameters.
    """

    module: str
    config: str
    model: str
    architecture: str | None = None
    key_maps: Mapping[str, KeyMap] = field(default_factory=dict)
    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config_keys: Mapping[str, ConfigKeys] = field(default_factory=dict)
    derived: Callable[[Any], dict[str, Any]] | None = None
    units: Callable[[Any, int], UnitTable] | None = None
    graft_width: Callable[[Any], int] | None = None
    bench: Callable[[int], dict[str, Any]] = lambda width: {}
    width: tuple[str, int] | None = None
    fine: tuple[str, ...] = ()

    def load(self) -> tuple[Any, type, type]:
        """The module, the configuration class and the model class."""
        module = import_module(f"kssm_mlx.models.{self.module}")
        return module, getattr(module, self.config), getattr(module, self.model)


def keep_names(*names: str) -> KeyMap:
    """Names that are ours already."""
    return {name: (name, "same") for name in names}


def rows(
    role: Literal["routing", "slack"], width: int, *paths: str, at: int = 0, axis: int = 0
) -> list[Claim]:
    """`width` rows of each path, from row `at` on."""
    return [Claim(role, path, axis, at, width) for path in paths]


def ratio(a: int, b: int) -> int | float:
    """a / b as JSON has it: a whole number where it is one."""
    return a // b if a % b == 0 else a / b
