"""What every check measures and why, by id: of runs (C), states (D), tasks (G), and of weights (W)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kssm_mlx.checks.core import plugins
from kssm_mlx.checks.core.registry import REGISTRY, Definition, explain
from kssm_mlx.checks.machine import fitness, kernels
from kssm_mlx.checks.pretrained import arithmetic, behaviour
from kssm_mlx.checks.pretrained.file_reasons import REASONS
from kssm_mlx.checks.pretrained.files import HOST_CHECK, host_verdict
from kssm_mlx.checks.pretrained.subject import LAYERS, TITLES
from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.weights.audit import findings

SOURCES = {"W7": "liminal.md C10", "W19": "liminal.md C10", "W20": "liminal.md C13", "W25": "liminal.md C11"}
SOURCES |= {"W0": "issue 3", "W22": "liminal.md C5", "W24": "liminal.md C11", "W26": "liminal.md C18"}
SOURCES |= {"W27": "liminal.md C19", "H2": "perf.md section 1"}
DOCTOR = "doctor"  # where others have a level


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


def definitions() -> dict[str, Entry]:
    """Every check, plug-ins too, by their letters, each in the order of the numbers."""
    plugins.load()
    entries = [*map(_registered, REGISTRY.values()), *_files(), *_models(), *_machine()]
    entries.append(_entry("W0", "P", HOST_CHECK, host_verdict))
    return {e.id: e for e in sorted(entries, key=lambda e: _ordinal(e.id))}


def _ordinal(id: str) -> tuple[str, int]:
    letters = id.rstrip("0123456789")
    return letters, int(id.removeprefix(letters))


def _registered(d: Definition) -> Entry:
    cost = f"{d.passes} forward pass{'es' * (d.passes > 1)}" if d.passes else ""
    return Entry(d.id, ", ".join(d.level + d.also), d.title, d.source, d.explanation, cost, d.package)


def definition(id: str) -> Entry:
    """The check of an id, in capitals or not. Raises: ConfigError with the nearest one."""
    known, id = definitions(), id.strip().upper()
    if id not in known:
        raise ConfigError(f"no check {id!r}{nearest(id, known)}; docs/checks.md has all of them")
    return known[id]


def _files() -> list[Entry]:
    """W1 to W19, which read files."""
    return [
        Entry(id, layer, findings.CHECKS[id].title, _source(id), explain(REASONS[id]))
        for layer, ids in findings.LAYERS.items()
        for id in ids
    ]


def _models() -> list[Entry]:
    """W20 to W28, which run the model."""
    functions = {**arithmetic.CHECKS, **behaviour.CHECKS}
    return [_entry(id, layer, TITLES[id], functions[id]) for layer, ids in LAYERS.items() for id in ids]


def _machine() -> list[Entry]:
    """H1 to H6 and K0, K1, ..., which `kssm doctor` asks of the machine."""
    of_host = [_entry(id, DOCTOR, fitness.TITLES[id], function) for id, function in fitness.CHECKS.items()]
    functions = {"K0": kernels.bridge}
    return of_host + [
        _entry(id, DOCTOR, title, functions.get(id, kernels.judge)) for id, title in kernels.titles().items()
    ]


def _entry(id: str, level: str, title: str, function: Callable) -> Entry:
    text = (function.__doc__ or "").removeprefix(f"{id}: ")
    return Entry(id, level, title, _source(id), explain(text))


def _source(id: str) -> str:
    return SOURCES.get(id) or {"H": "mlx.md", "K": "issue 4"}.get(id[0], "issue 3, section 2")
