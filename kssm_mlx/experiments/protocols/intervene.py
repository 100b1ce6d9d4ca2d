"""Train a recipe, then hold a quantity inside it on held-out text: `experiments.intervene` on every seed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from kssm_mlx.experiments.intervene import Effect, measure_effects, parse_holds
from kssm_mlx.experiments.job import Job, Measured
from kssm_mlx.experiments.protocols import Protocol
from kssm_mlx.experiments.protocols import train as training
from kssm_mlx.training.steering_sections import Section, setting


class Options(Section):
    hold: list[str] = setting(["R=0.2,0.5,0.8"], "what is held, and at which values", min_length=1)
    block: str = setting("all", "which block, or `all`")
    tokens: str = setting(":", "where in each window, `a:b`")
    units: str = setting("all", "which populations, such as `0,1,2`, or `all`")
    where: Literal["readout", "state"] = setting("readout", "whether the carried state is held too")


def run(job: Job, folder: Path, options: Options, console: Console) -> Measured:
    holds = parse_holds(options.hold, options.block, options.tokens, options.where, options.units)
    done = training.train_run(job, folder, console)
    measured = training.measure_run(done)
    windows = training.open_windows(done.folder, done.data)
    effects = measure_effects(done.trained.model, windows, holds, seed=job.seed)
    for effect in effects:
        _add(measured, f"do_{effect.hold.name.replace('=', '_')}", effect)
    for name, attribute in KINDS.items():
        values = np.mean([getattr(effect, attribute) for effect in effects], axis=0)
        measured.metrics[f"do_{name}"] = float(values.mean())
        measured.units[f"do_{name}"] = values.tolist()
    return measured


KINDS = {
    "nats": "nats",
    "kl": "kl",
    "placebo_nats": "placebo_nats",
    "placebo_kl": "placebo_kl",
    "control_kl": "control",
}


def _add(measured: Measured, prefix: str, effect: Effect) -> None:
    for name, attribute in KINDS.items():
        measured.metrics[f"{prefix}_{name}"] = float(getattr(effect, attribute).mean())
    measured.metrics[f"{prefix}_missed"] = effect.missed


PROTOCOL = Protocol("intervene", (*training.METRICS, "do_*"), Options, run)
