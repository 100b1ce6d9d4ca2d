"""Do the aims of a recipe agree? Its tone map, its target zone, its controller and its terms beside the
loss.
"""

from __future__ import annotations

from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.oscillators import zones
from kssm_mlx.oscillators.zones import Range
from kssm_mlx.training.controllers import RULES
from kssm_mlx.training.recipe import Monitor, Recipe

TOO_MUCH = "over-sync"
ANY: Range = (0.0, 1.0)


@check("C28", level="P", title="aims agree with each other", source="docs/background/steering.md#zones")
def targets_agree(ctx: Context) -> Check:
    """The range of R and U that [monitor] names as the target (a run has one), against everything else in the
    recipe that pushes R or U: the range of [control]; the R that the terms tonal and coherence leave
    alone; the U that the term uncertainty aims for; what the tone map calls the middle of the target; and the
    range of R U, which must be possible inside both. Two ranges agree if they overlap.

    Threshold: none contradicts: a run that is pushed to where it is punished cannot tell anything.
    Caught: R in 0.30-0.55 kept by the drift controller, 0.80-0.95 aimed for by the trainers, called over-sync
    by their tone map and punished by their tonal term; R in 0.40-0.55 with U in 0.4-0.6 and R U in 0.4-0.6.
    Sabotage: each of these.
    """
    ctx.need("recipe")
    if not (ctx.recipe.monitor or ctx.recipe.control):
        raise NotMeasurable("the recipe has neither [monitor] nor [control]")
    found = list_contradictions(ctx.recipe)
    aim = (ctx.recipe.monitor or Monitor()).target
    return verdict(
        "C28",
        not found,
        "; ".join(found) or f"target {aim!r}, R in {_show(zones.TARGETS[aim].R)}, and nothing against it",
        "one aim",
        "let monitor.target, monitor.profile, control and the terms of [loss] name the same zone",
        contradictions=found,
    )


def list_contradictions(recipe: Recipe) -> list[str]:
    """One phrase for every two aims that cannot both be reached."""
    monitor = recipe.monitor or Monitor()
    R, U, _ = zones.TARGETS[monitor.target]
    found = [
        f"{name} wants {quantity} in {_show(wanted)}, the target {monitor.target!r} in {_show(aim)}"
        for name, quantity, wanted in _list_pushes(recipe)
        if not _ranges_meet(wanted, aim := (R if quantity == "R" else U or ANY))
    ]
    called = zones.tone(sum(R) / 2, monitor.profile)
    if called == TOO_MUCH:
        found.append(f"profile {monitor.profile} calls the target {monitor.target!r} {called!r}")
    if monitor.product and not zones.feasible(R, U or ANY, monitor.product):
        found.append(f"R U in {_show(monitor.product)} is impossible in the target {monitor.target!r}")
    return found


def _list_pushes(recipe: Recipe) -> list[tuple[str, str, Range]]:
    """(who, "R" or "U", the range it leaves alone) of what pushes."""
    wishes = []
    if section := recipe.control:
        rule = RULES[section.rule]
        wishes.append((f"control ({section.rule})", "R", section.R or rule.R))
        wishes.append((f"control ({section.rule})", "U", section.U or rule.U or ANY))
    for name, options in recipe.loss.items():
        kind = name.removeprefix("legacy_")
        if kind == "tonal":
            wishes.append((f"loss.{name}", "R", (0.0, options.get("limit", 0.8))))
        elif kind == "coherence":
            wishes.append((f"loss.{name}", "R", _free_range(**options)))
        elif kind == "uncertainty":
            target = options.get("target", 0.5)
            wishes.append((f"loss.{name}", "U", (target, target)))
    return wishes


def _free_range(kind: str = "band", target: float = 0.45, width: float = 0.1, **_: float) -> Range:
    """The R that the coherence term costs nothing."""
    return {"ceiling": (0.0, target), "center": (target, target), "band": (target - width, target + width)}[
        kind
    ]


def _ranges_meet(a: Range, b: Range) -> bool:
    """Whether two ranges overlap; ends that touch do not, but a range of one point lies in another."""
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return low < high or (low == high and (a[0] == a[1] or b[0] == b[1]))


def _show(among: Range) -> str:
    return f"{among[0]:g}-{among[1]:g}"
