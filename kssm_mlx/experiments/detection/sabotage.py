"""What a row of the matrix is: a function that breaks one thing, and the checks that should catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.experiments.detection.bench import Bench

Breaks = Callable[[Bench], Context]


@dataclass(frozen=True)
class Sabotage:
    """One row. expected: ids that must fail; level: which checks are asked, all of them where it is "".

    untrained: whether checks of what was learned look at a model that has learned nothing.
    """

    name: str
    what: str
    expected: tuple[str, ...]
    breaks: Breaks
    level: str = ""
    untrained: bool = False


SABOTAGES: dict[str, Sabotage] = {}


def sabotage(*expected: str, level: str = "") -> Callable[[Breaks], Breaks]:
    """Register a function as a row: its name and its docstring are the row's."""

    def register(breaks: Breaks) -> Breaks:
        name = breaks.__name__.replace("_", " ")
        SABOTAGES[name] = Sabotage(name, (breaks.__doc__ or "").strip(), expected, breaks, level)
        return breaks

    return register
