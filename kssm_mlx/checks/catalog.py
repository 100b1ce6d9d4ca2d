"""What every check measures and why, by id: of runs (C), states (D), tasks (G), and of weights (W)."""

from __future__ import annotations

from typing import NamedTuple

from kssm_mlx.checks.core import plugins
from kssm_mlx.checks.core.registry import REGISTRY, Definition
from kssm_mlx.errors import ConfigError, nearest


class Entry(NamedTuple):
    """A check as readers see it; explanation: "definition", "threshold", "caught", "sabotage"; cost: in
    words; package: whose it is.
    """

    id: str
    level: str
    title: str
    source: str
    explanation: dict[str, str]
    cost: str = ""
    package: str = "kssm_mlx"


def list_entries() -> dict[str, Entry]:
    """Every check, plug-ins too, by their letters, each in the order of the numbers."""
    plugins.load()
    entries = map(_make_entry, REGISTRY.values())
    return {e.id: e for e in sorted(entries, key=lambda e: _ordinal(e.id))}


def _ordinal(id: str) -> tuple[str, int]:
    letters = id.rstrip("0123456789")
    return letters, int(id.removeprefix(letters))


def _make_entry(d: Definition) -> Entry:
    cost = f"{d.passes} forward pass{'es' * (d.passes > 1)}" if d.passes else ""
    return Entry(d.id, ", ".join(d.levels), d.title, d.source, d.explanation, cost, d.package)


def find_entry(id: str) -> Entry:
    """The check of an id, in capitals or not. Raises: ConfigError with the nearest one."""
    known, id = list_entries(), id.strip().upper()
    if id not in known:
        raise ConfigError(f"no check {id!r}{nearest(id, known)}; docs/checks.md has all of them")
    return known[id]
