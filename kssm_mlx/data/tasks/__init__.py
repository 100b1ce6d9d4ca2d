"""Synthetic tasks: rows of tokens from a rule, with what the best causal predictor reaches on them.

    task = make_task("interleaved", {"length": 128})
    ids, scored = task.sample(seed=0, split="validation", index=7)
    task.bound("scored")          accuracy 0.9375, 0.548 nats per target
    task.predict(ids[:20])        the oracle's next token

Source: docs/background/allostasis.md#tasks and #ceilings; docs/background/hybrids.md#passkeys.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from kssm_mlx.data.tasks.associative import MQAR, FuzzyRecall, NoisyRecall, Recall
from kssm_mlx.data.tasks.base import Row, Task, make_generator
from kssm_mlx.data.tasks.files import PREFIX
from kssm_mlx.data.tasks.mad import BlankCopy, Compress, Memorize
from kssm_mlx.data.tasks.recall import Copy, Induction, Passkey, SelectiveCopy
from kssm_mlx.data.tasks.rules import Counting, Modular
from kssm_mlx.data.tasks.streams import Interleaved, Toy
from kssm_mlx.data.tasks.tracking import Dyck, Parity, WordProblem
from kssm_mlx.errors import ConfigError, nearest, quote
from kssm_mlx.parsing import adapter_of

__all__ = ["PREFIX", "TASKS", "Row", "Task", "make_generator", "make_task"]

TASKS: dict[str, type[Task]] = {
    "toy": Toy,
    "interleaved": Interleaved,
    "modular": Modular,
    "copy": Copy,
    "selective-copy": SelectiveCopy,
    "induction": Induction,
    "counting": Counting,
    "passkey": Passkey,
    "word-problem": WordProblem,
    "parity": Parity,
    "dyck": Dyck,
    "mqar": MQAR,
    "mad-recall": Recall,
    "mad-fuzzy": FuzzyRecall,
    "mad-noisy": NoisyRecall,
    "mad-copy": BlankCopy,
    "mad-memorize": Memorize,
    "mad-compress": Compress,
}


def make_task(name: str, options: dict[str, Any] | None = None) -> Task:
    """A task by its name, with fields of its dataclass set.

    Raises: ConfigError for an unknown name or field (with the nearest) and for a value of a wrong type.
    """
    from pydantic import ValidationError

    if name not in TASKS:
        raise ConfigError(f"no task {name!r}; known: {', '.join(TASKS)}{nearest(name, TASKS)}")
    known = [f.name for f in fields(TASKS[name])]
    for key in options or {}:
        if key not in known:
            raise ConfigError(f"unknown key 'data.task.{key}' for {name}{nearest(key, known)}")
    try:
        # By way of JSON, where a list is the only tuple.
        return adapter_of(TASKS[name]).validate_json(json.dumps(options or {}), strict=True)
    except ValidationError as e:
        error = e.errors()[0]
        raise ConfigError(
            f"data.task.{'.'.join(map(str, error['loc']))}: {error['msg']}, got {quote(error['input'])}"
        ) from None
