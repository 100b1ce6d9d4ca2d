"""What `[monitor]` and `[control]` add to the rows of a run, do to its knobs, and say of its course.

each step      tone (what the profile calls R), action and reason, `knob_<name>` as the step ran with them
evaluations    residence_R, residence_joint: the share of the steps since the last one that spent R, or R,
               U and R·U together, in the target
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import number
from kssm_mlx.oscillators import zones
from kssm_mlx.training.controllers import apply_control, refuse_without_knobs
from kssm_mlx.training.early_stopping import Advice, Curve, advise
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.steering_sections import Control, Monitor

Row = dict[str, Any]
Knobs = dict[str, mx.array]


class Monitoring:
    """`row, knobs = watch.step(row, knobs)` after each step. `visits` is all it remembers between steps.

    Raises: ConfigError for a controller without knobs to turn.
    """

    def __init__(self, recipe: Recipe, model_type: str, knobs: Knobs):
        self.monitor, self.control = recipe.monitor, recipe.control
        self.active = recipe.monitor is not None
        self.at_rest = knobs
        self.visits = {"steps": 0, "R": 0, "joint": 0}
        if recipe.control:
            refuse_without_knobs(recipe.control, knobs, model_type)

    def step(self, row: Row, knobs: Knobs) -> tuple[Row, Knobs]:
        """The row with its new columns, and the knobs for the next step."""
        if self.monitor is None:
            return row, knobs
        R = row.get("R")
        row = row | ({} if R is None else {"tone": zones.tone(min(R, 1.0), self.monitor.profile)})
        self._count(row, self.monitor)
        return self._apply_control(row, knobs, self.control) if self.control else (row, knobs)

    def residence(self) -> Row:
        """The shares since they were last asked for; {} where nothing was counted."""
        visits, self.visits = self.visits, dict.fromkeys(self.visits, 0)
        names = ("R", "joint") if visits["steps"] else ()
        return {f"residence_{name}": visits[name] / visits["steps"] for name in names}

    def _count(self, row: Row, monitor: Monitor) -> None:
        R, U, RU = (row.get(name) for name in ("R", "U", "RU"))
        if R is None or U is None or RU is None:
            return
        aim = zones.TARGETS[monitor.target]
        here = zones.inside(R, aim.R)
        joint = here and zones.inside(U, aim.U) and zones.inside(RU, monitor.product)
        now = {"steps": 1, "R": here, "joint": joint}
        self.visits = {name: self.visits[name] + now[name] for name in now}

    def _apply_control(self, row: Row, knobs: Knobs, control: Control) -> tuple[Row, Knobs]:
        if "R" not in row:
            raise ConfigError(
                "[control] needs R, which this model's trace does not have; take the section out"
            )
        ran_with = {f"knob_{name}": number(array) for name, array in knobs.items()}
        before = knobs if control.persist else self.at_rest
        decided = apply_control(control, row, {name: number(array) for name, array in before.items()})
        row = row | {"action": decided.action, "reason": decided.reason} | ran_with
        return row, {name: mx.array(value, mx.float32) for name, value in decided.knobs.items()}


class EarlyStopping:
    """The course of the losses so far, and what was decided about it; `memory` is all that it remembers."""

    def __init__(self, recipe: Recipe):
        self.options = recipe.monitor.patience if recipe.monitor else None
        self.planned = recipe.train.steps
        self.memory: dict[str, Any] = {
            **{"steps": [], "held_out": [], "training": [], "cuts": [], "stopped": ""},
            **{"loss": 0.0, "rows": 0},  # training since the last evaluation
        }

    @property
    def stopped(self) -> str:
        """Why the run goes no further, or ""."""
        return self.memory["stopped"] if self.options else ""

    def step(self, row: Row) -> None:
        if row["loss"] is not None:
            self.memory["loss"] += row["loss"]
            self.memory["rows"] += 1

    def judge_evaluation(self, row: Row) -> Advice | None:
        """What is to be done after an evaluation; None without rules, or where nothing is."""
        known, rows = self.memory, self.memory["rows"]
        if not self.options or row["nats_per_token"] is None or not rows:
            return None
        known["steps"].append(row["step"])
        known["held_out"].append(row["nats_per_token"])
        known["training"].append(known["loss"] / rows)
        known |= {"loss": 0.0, "rows": 0}
        steps, held_out, training = (tuple(known[name]) for name in ("steps", "held_out", "training"))
        curve = Curve(steps, held_out, training, self.planned)
        advice = advise(curve, tuple(known["cuts"]), self.options)
        if advice.action == "CUT":
            known["cuts"].append(row["step"])
        if advice.action == "STOP":
            known["stopped"] = f"{advice.rule}: {advice.reason}"
        return None if advice.action == "CONTINUE" else advice
