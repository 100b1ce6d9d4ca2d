"""Tasks with a rule, and what keeps a model from learning it or a score from meaning it."""

from __future__ import annotations

from dataclasses import replace

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.experiments.detection.bench import Bench
from kssm_mlx.experiments.detection.broken_models import Memoryless, recast_context
from kssm_mlx.experiments.detection.sabotage import sabotage

ROWS = {"vocab": 64, "length": 32, "train_rows": 400, "validation_rows": 100}
INTERLEAVED = {"source": "task:interleaved", "tokenizer": "ids", "task": ROWS}


@sabotage("G8", level="P")
def validation_rows_are_training_rows(bench: Bench) -> Context:
    """The held-out rows of a task are rows that were trained on."""
    context = bench.fresh("transformer", data=INTERLEAVED)
    train, rows = context.data.train, 100 * (ROWS["length"] + 1)
    held_out = replace(
        context.data.validation, ids=train.ids[:rows], starts=train.starts[:100], scored=train.scored[:rows]
    )
    return replace(context, data=replace(context.data, validation=held_out))


@sabotage("G7", "C1", level="P")
def task_beyond_the_reach(bench: Bench) -> Context:
    """The rule looks back 14 tokens, the model none."""
    return recast_context(bench.fresh("mamba", data=INTERLEAVED), Memoryless)
