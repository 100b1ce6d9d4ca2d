"""The clamp experiment of one seed: four conditions, each a run of its own (`experiments.clamps`).

Its published rule is `experiments.clamp_rule`; in an experiment's file each part of it is a claim on these
metrics, such as skill_control against skill_constraint.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from rich.console import Console

from kssm_mlx.experiments.clamps import Design, run_clamp_experiment
from kssm_mlx.experiments.job import Job, Measured
from kssm_mlx.experiments.protocols import Protocol
from kssm_mlx.training.steering_sections import Section, setting

QUANTITIES = ("skill", "nats", "accuracy", "A", "A_sig", "sigma_sig", "d_prime", "margin", "free_routing")


class Options(Section):
    site: Literal["S1", "S2"] = setting("S2", "where the clamps act: S2 per unit, S1 as published")
    frozen: list[int] = setting([1, 2, 3], "the units that do not learn", min_length=1)
    of: int = setting(4, "equal parts of the mixer", ge=2)
    place: str = setting("tail", "the place of the task whose skill decides")


def run(job: Job, folder: Path, options: Options, console: Console) -> Measured:
    if folder.exists():
        shutil.rmtree(folder)  # conditions hang on each other's weights, so a seed begins again as a whole
    design = Design(
        site=options.site,
        units=tuple(options.frozen),
        of=options.of,
        seeds=(job.seed,),
        metric=options.place,
    )
    outcomes = run_clamp_experiment(job.recipe, folder, design, console=console)
    metrics = {f"{name}_{o.condition}": float(getattr(o, name)) for o in outcomes for name in QUANTITIES}
    metrics["compensation"] = max(
        metrics[f"{name}_constraint"] / metrics[f"{name}_control"] for name in ("A", "A_sig")
    )
    metrics["share"] = metrics["skill_mean-preserving"] / max(metrics["skill_constraint"], 1e-9)
    return Measured(metrics)


PROTOCOL = Protocol("clamp", (*(f"{name}_*" for name in QUANTITIES), "compensation", "share"), Options, run)
