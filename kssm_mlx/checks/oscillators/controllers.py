"""Does a controller do what its actions are called?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kssm_mlx.checks.core.conditions import mean_R, noise, read_passage
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.models.base import flatten, training_mode, with_parameters
from kssm_mlx.training.controllers import COUPLINGS, RULES
from kssm_mlx.training.monitoring import Knobs, Monitoring
from kssm_mlx.training.state import with_knobs

ACTIONS, MOVED, BEYOND = 20, 0.01, 0.1


class Driven(NamedTuple):
    """What 20 actions of one kind did: the change of R, whether each began from what the one before left."""

    change: float
    kept: bool


@check("C27", level="P", title="controllers act", source="docs/background/steering.md#controllers", passes=4)
def controllers_act(ctx: Context) -> Check:
    """The recipe's [control] is told 20 times that R is 0.1 above its range, and 20 times that it is 0.1
    below, while the text stays the same 8 rows. dR: change of the mean R over the blocks between the knobs
    at the start and the knobs after the 20 actions, in training mode under equal noise. Kept: the coupling
    after 20 actions is not what it was after one, unless that reached a bound.

    Threshold: dR <= -0.01 for BRAKE, >= +0.01 for BOOST or ESCAPE, what 20 rows of a log can tell from
    rounding; and kept, or nothing can ever add up.
    Caught: BOOST of the hook core and of the dual rule, which named an action and turned nothing; k_scale
    of PhaseBlock, put back by every update of the parameters: 2000 brakes and R above 0.85 all the while.
    Sabotage: label_only; persist = false; a knob that nothing reads; a knob that acts backwards.
    """
    ctx.need("model", "recipe")
    if ctx.recipe.control is None:
        raise NotMeasurable("the recipe has no [control]")
    raising = RULES[ctx.recipe.control.rule].raising
    done = {"BRAKE": _drive(ctx, +1), raising: _drive(ctx, -1)}
    idle = [name for name, sign in (("BRAKE", -1), (raising, 1)) if not sign * done[name].change >= MOVED]
    lost = [name for name in done if not done[name].kept]
    return verdict(
        "C27",
        not idle and not lost,
        ", ".join(
            f"{name} moves R by {d.change:+.3f}{'' if d.kept else ' (not kept)'}" for name, d in done.items()
        ),
        f"BRAKE <= -{MOVED}, {raising} >= +{MOVED} after {ACTIONS} actions, each going on from the last",
        f"{', '.join(lost)}: every action starts anew; set control.persist = true and label_only = false"
        if lost
        else f"{', '.join(idle)} does not reach R: turn what couples the oscillators, the right way round",
        driven={name: list(d) for name, d in done.items()},
    )


def _drive(ctx: Context, direction: int) -> Driven:
    """20 actions against an R beyond the range: above it for +1, below it for -1."""
    section, arrays = ctx.recipe.control, flatten(ctx.model.parameters())
    knobs = {name: arrays[name] for name in getattr(ctx.model, "knobs", ())}
    watch, before, after_one = Monitoring(ctx.recipe, ctx.model.model_type, knobs), knobs, knobs
    low, high = section.R or RULES[section.rule].R
    R = high + BEYOND if direction > 0 else max(low - BEYOND, 0.0)
    for i in range(ACTIONS):
        _, knobs = watch.step({"R": R, "U": _middle_of_ranges(section), "RU": 0.5}, knobs)
        after_one = knobs if i == 0 else after_one
    kept = any(
        knobs[name].item() != after_one[name].item() or after_one[name].item() in section.bounds
        for name in knobs
        if name.rpartition(".")[2] in COUPLINGS
    )
    return Driven(_coherence(ctx, knobs) - _coherence(ctx, before), kept)


def _middle_of_ranges(section) -> float:
    U = section.U or RULES[section.rule].U or (0.0, 1.0)
    return sum(U) / 2


def _coherence(ctx: Context, knobs: Knobs) -> float:
    """Mean R with the knobs at these values. Raises: NotMeasurable where the trace has none."""
    tokens, model = read_passage(ctx), ctx.model
    parameters = with_knobs(model.trainable_parameters(), knobs)
    with training_mode(model, True):
        out = with_parameters(model, parameters, lambda: model.forward(tokens, **noise(model, ctx.seed)))
    return float(np.mean(list(mean_R(out.trace).values())))
