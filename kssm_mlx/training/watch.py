"""What `[monitor]` and `[control]` add to the rows of a run, and do to its knobs between two steps.

each step      tone (what the profile calls R), action and reason, `knob_<name>` as the step ran with them
evaluations    residence_R, residence_joint: the share of the steps since the last one that spent R, or R,
               U and R·U together, in the target
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.oscillators import zones
from kssm_mlx.training.controls import control, refuse_without_knobs
from kssm_mlx.training.recipe import Monitor, Recipe

Row = dict[str, Any]
Knobs = dict[str, mx.array]


class Watch:
    """`row, knobs = watch.step(row, knobs)` after each step. `visits` is all it remembers between steps.

    Raises: ConfigError for a controller without knobs to turn.
    """

    def __init__(self, recipe: Recipe, model_type: str, knobs: Knobs):
        self.monitor, self.control = recipe.monitor or Monitor(), recipe.control
        self.active = bool(recipe.monitor or recipe.control)
        self.at_rest = knobs
        self.visits = {"steps": 0, "R": 0, "joint": 0}
        if recipe.control:
            refuse_without_knobs(recipe.control, knobs, model_type)

    def step(self, row: Row, knobs: Knobs) -> tuple[Row, Knobs]:
        """The row with its new columns, and the knobs for the next step."""
        if not self.active:
            return row, knobs
        R = row.get("R")
        row = row | ({} if R is None else {"tone": zones.tone(min(R, 1.0), self.monitor.profile)})
        self._count(row)
        return self._controlled(row, knobs) if self.control else (row, knobs)

    def residence(self) -> Row:
        """The shares since they were last asked for; {} where nothing was counted."""
        visits, self.visits = self.visits, dict.fromkeys(self.visits, 0)
        names = ("R", "joint") if visits["steps"] else ()
        return {f"residence_{name}": visits[name] / visits["steps"] for name in names}

    def _count(self, row: Row) -> None:
        R, U, RU = (row.get(name) for name in ("R", "U", "RU"))
        if R is None or U is None:
            return
        aim = zones.TARGETS[self.monitor.target]
        here = zones.inside(R, aim.R)
        joint = here and zones.inside(U, aim.U) and zones.inside(RU, self.monitor.product)
        now = {"steps": 1, "R": here, "joint": joint}
        self.visits = {name: self.visits[name] + now[name] for name in now}

    def _controlled(self, row: Row, knobs: Knobs) -> tuple[Row, Knobs]:
        if "R" not in row:
            raise ConfigError(
                "[control] needs R, which this model's trace does not have; take the section out"
            )
        ran_with = {f"knob_{name}": array.item() for name, array in knobs.items()}
        before = knobs if self.control.persist else self.at_rest
        decided = control(self.control, row, {name: array.item() for name, array in before.items()})
        row = row | {"action": decided.action, "reason": decided.reason} | ran_with
        return row, {name: mx.array(value, mx.float32) for name, value in decided.knobs.items()}
