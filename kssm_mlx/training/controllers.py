"""Controllers that act: what R and U say about a step, and how far that turns the model's knobs.

    rule        BRAKE                  BOOST (drift: ESCAPE)  otherwise  R            U
    drift       R above the range      R below it             NONE       0.30-0.55
    dual        R above, or U below    R below, or U above    COAST      0.80-0.95    0.20-0.80
    hook        R above                R below                COAST      0.80-0.95

The precursors' coupling knob was put back by every update of the parameters, so brakes never added up, and
two of the rules named actions that nothing carried out. Here a knob is part of the training state and keeps
what it was turned to; `label_only` and `persist = false` are the old behaviours.

Source: docs/background/steering.md#controllers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kssm_mlx.errors import ConfigError
from kssm_mlx.oscillators.zones import Range
from kssm_mlx.training.steering_sections import Control

# The last names of the knobs that are turned: what couples oscillators, and the spread of their noise.
COUPLINGS = ("K", "k_scale")
NOISES = ("sigma",)


class Decision(NamedTuple):
    """knobs: where they stand from now on; action: BRAKE, BOOST, ESCAPE, COAST or NONE; reason: why."""

    knobs: dict[str, float]
    action: str
    reason: str


class Rule(NamedTuple):
    """The ranges a rule keeps R and U in, what it calls raising the coupling, and doing nothing."""

    R: Range
    U: Range | None
    raising: str
    idle: str


RULES = {
    "drift": Rule((0.30, 0.55), None, "ESCAPE", "NONE"),
    "dual": Rule((0.80, 0.95), (0.20, 0.80), "BOOST", "COAST"),
    "hook": Rule((0.80, 0.95), None, "BOOST", "COAST"),
}


def apply_control(
    section: Control, observed: Mapping[str, float | None], knobs: Mapping[str, float]
) -> Decision:
    """What a controller does after a step.

    observed: R and U of the step; a rule does nothing about what was not measured. knobs: their values then.
    """
    action, reason, excess = judge_ranges(section, observed)
    if section.label_only:
        return Decision(dict(knobs), action, reason)
    return Decision(turn_knobs(section, action, excess, knobs), action, reason)


def judge_ranges(section: Control, observed: Mapping[str, float | None]) -> tuple[str, str, float]:
    """(action, reason, by how much R is too high or U too low). R is asked before U."""
    rule = RULES[section.rule]
    ranges = {"R": section.R or rule.R, "U": section.U or rule.U}
    asked = {name: r for name, r in ranges.items() if r is not None}
    if any(observed.get(name) is None for name in asked):
        return rule.idle, "not measured", 0.0
    over = {name: observed[name] - high for name, (_, high) in asked.items()}
    under = {name: low - observed[name] for name, (low, _) in asked.items()}
    for name, excess in (("R_high", over["R"]), ("U_low", under.get("U", 0.0))):
        if excess > 0:
            return "BRAKE", name, excess
    for name, excess in (("R_low", under["R"]), ("U_high", over.get("U", 0.0))):
        if excess > 0:
            return rule.raising, name, 0.0
    return rule.idle, "in range", 0.0


def turn_knobs(section: Control, action: str, excess: float, knobs: Mapping[str, float]) -> dict[str, float]:
    """The knobs after an action: the coupling stays where it is put, the noise lasts as long as the brake.

    The bounds end a movement and never turn it round: below them a brake does nothing.
    """
    brakes, raises = action == "BRAKE", action == RULES[section.rule].raising
    factor = 1 - section.brake if brakes else 1 + section.boost if raises else 1.0
    low, high = section.bounds
    noise = min(section.noise_gain * excess, section.noise_limit) if brakes else 0.0

    def turn(role: str, value: float) -> float:
        if role in NOISES:
            return noise
        if role not in COUPLINGS:
            return value
        return min(value, max(value * factor, low)) if factor < 1 else max(value, min(value * factor, high))

    return {name: turn(name.rpartition(".")[2], value) for name, value in knobs.items()}


def refuse_without_knobs(section: Control, knobs: Iterable[str], model_type: str) -> None:
    """Raises: ConfigError for a controller that has nothing to turn."""
    if section.label_only or any(name.rpartition(".")[2] in COUPLINGS + NOISES for name in knobs):
        return
    found = ", ".join(knobs) or "none"
    raise ConfigError(
        f"[control] turns {', '.join(COUPLINGS + NOISES)}, but the knobs of {model_type} are: {found}; "
        "build the model with knobs (for K-SSM controlled = true), or set control.label_only = true"
    )
