"""Runs that were made as they should be, and what is then said about them."""

from __future__ import annotations

import json
from dataclasses import replace

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.experiments.detection.bench import Bench, make_sentences
from kssm_mlx.experiments.detection.sabotage import sabotage
from kssm_mlx.models.base import Clamp, Intervention

SLOW = {"learning_rate": 1e-4}


def claim(runs: list[Context], baseline: list[Context]) -> Context:
    return replace(runs[0], runs=runs, baseline=baseline)


def sound_claim(bench: Bench) -> Context:
    """The control of the checks that compare: a learning rate against a hundredth of it, three seeds each."""
    fast = [bench.train_run("mamba", seed) for seed in range(3)]
    return claim(fast, [bench.train_run("mamba", seed, "slow", train=SLOW) for seed in range(3)])


@sabotage("C35", level="G")
def one_arm_twice(bench: Bench) -> Context:
    """Treatment and control are the same run."""
    return claim([bench.train_run("mamba")], [bench.train_run("mamba")])


@sabotage("C35", level="G")
def seeds_taken_for_arms(bench: Bench) -> Context:
    """Two seeds of one arm are said to differ from two others."""
    runs = [bench.train_run("mamba", seed) for seed in range(4)]
    return claim(runs[:2], runs[2:])


@sabotage("C34", level="G")
def two_texts_compared(bench: Bench) -> Context:
    """Each run is evaluated on its own text."""
    source = bench.text("other", make_sentences(4000, 1))
    return claim(
        [bench.train_run("mamba")], [bench.train_run("mamba", name="other", data={"source": source})]
    )


@sabotage("C34", level="G")
def regulariser_in_the_loss(bench: Bench) -> Context:
    """The control's logged loss has 2.28 nats of a barrier in it."""
    control = bench.train_run("mamba", 1)
    rows = [
        {**row, "nats_per_token": row["nats_per_token"] + 2.28} if row["kind"] == "eval" else row
        for row in control.history or []
    ]
    return claim([bench.train_run("mamba")], [replace(control, history=rows)])


@sabotage("C36", level="G")
def parameters_of_another_model(bench: Bench) -> Context:
    """84,000 parameters are claimed."""
    context = bench.train_run("kssm")
    return replace(context, manifest={**(context.manifest or {}), "parameters": 84_000})


@sabotage("C36", level="G")
def files_of_another_run(bench: Bench) -> Context:
    """The token files are not those that the manifest has."""
    context = bench.train_run("rwkv")
    manifest = json.loads(json.dumps(context.manifest))
    manifest["data"]["files"]["train.bin"]["sha256"] = "f" * 64
    return replace(context, manifest=manifest)


@sabotage("C21", level="G")
def clamp_on_tokens_that_never_come(bench: Bench) -> Context:
    """The treatment begins at token 1000 of texts of 32."""
    late = Intervention((Clamp("R", 0.5, start=1000),))
    return replace(bench.train_run("kssm"), interventions={"late": late})
