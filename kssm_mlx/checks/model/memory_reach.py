"""Does the model reach as far back as its task needs?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kssm_mlx.checks.core.probes import (
    logit_deviation,
    logit_spread,
    logits_of,
    perturb_zero_init,
    random_tokens,
    swap_token,
    vocabulary_size,
)
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.checks.data.task_learnability import task_of
from kssm_mlx.data.tasks import Copy, Counting, Induction, Modular, Passkey, SelectiveCopy, Task
from kssm_mlx.data.tasks.associative import MQAR, FuzzyRecall, Recall
from kssm_mlx.data.tasks.mad import BlankCopy, Compress, Memorize
from kssm_mlx.data.tasks.streams import Toy
from kssm_mlx.data.tasks.tracking import Dense

ROWS, MOST, FELT = 4, 7, 1e-6

# Task -> between the input that is asked for and the one that asks, in tokens; a subclass before its parent.
# What tracks a state needs every token there was.
NEEDED: dict[type[Task], Callable[[Any], range | list[int]]] = {
    SelectiveCopy: lambda t: range(t.symbols, t.span + 1),
    Copy: lambda t: [t.symbols],
    Passkey: lambda t: [t.digits + d for d in t.distances],
    Modular: lambda t: [1, 3],
    Counting: lambda t: range(1, t.length),
    Induction: lambda t: range(1, t.length - 1),
    Dense: lambda t: range(t.length),
    MQAR: lambda t: range(1, t.length - 1, 2),
    Recall: lambda t: range(1, t.length - 1, 2),
    FuzzyRecall: lambda t: range(1, t.length - 1),
    BlankCopy: lambda t: range(t.symbols + 1, t.length),
    Memorize: lambda t: [1],
    Compress: lambda t: [t.symbols + 1],
    Toy: lambda t: [t.streams * p - 1 for p in range(t.low, t.high + 1)],
}


@check(
    "G7",
    level="P",
    title="memory reaches what the task asks for",
    source="docs/background/allostasis.md#memory-reach",
    passes=8,
)
@perturb_zero_init
def memory_reach(ctx: Context) -> Check:
    """The lags between a token that decides and the place where it is asked for, from the task's options: 2p
    - 1 for interleaved streams of period p, every lag of a word problem; up to 7 of them, evenly chosen.
    Change the token at such a lag before the last place in 4 random rows; e = max |Δ logits at the last
    place| / std(logits).

    Threshold: e > 1e-6 at every lag: what does not even change the last digit cannot be used.
    Caught: K-SSM v3 on this task: phases by position, nothing carried, so at best a guess.
    Sabotage: a model that reads every token alone; one whose convolution of 4 tokens is all its memory.
    """
    task = task_of(ctx)
    ctx.need("model")
    lags = needed_lags(task)
    base = random_tokens(ctx, ROWS, task.length, stream=7)
    reference = logits_of(ctx.model, base)[:, -1]
    scale, e = logit_spread(reference), {}
    for lag in lags:
        tokens = base.copy()
        tokens[:, -1 - lag] = swap_token(base[:, -1 - lag], vocabulary_size(ctx.model), stream=lag)
        e[lag] = logit_deviation(logits_of(ctx.model, tokens)[:, -1], reference, scale)
    missing = [lag for lag in lags if not e[lag] > FELT]
    weakest = min(e, key=e.__getitem__)
    return verdict(
        "G7",
        not missing,
        f"no effect at lag {', '.join(map(str, missing))}"
        if missing
        else f"e {e[weakest]:.1e} at lag {weakest}",
        f"e > {FELT:g} at lag {', '.join(map(str, lags))}",
        "the model forgets before the question comes: a state that lasts longer (model.memory), or see C1",
        e=e,
        missing=missing,
    )


def needed_lags(task: Task) -> list[int]:
    """Lags in tokens, at most 7 of them. Raises: NotMeasurable for a task that does not say."""
    for kind, lags in NEEDED.items():
        if isinstance(task, kind):
            every = np.array(list(lags(task)))
            chosen = np.unique(np.linspace(0, every.size - 1, min(MOST, every.size)).round().astype(int))
            return every[chosen].tolist()
    raise NotMeasurable(f"nobody has said which lags the task {type(task).__name__} needs")
