"""A task as token files: its rows, which of their tokens are scored, and what they were made from."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from kssm_mlx.data.corpora.corpus import corpus_digest
from kssm_mlx.data.tasks.base import SPLITS, Task
from kssm_mlx.errors import DataError

PREFIX = "task:"
CANDIDATES = 20  # per validation row, after which a task is said to have too few different ones


def task_origin(name: str, task: Task, seed: int) -> dict[str, Any]:
    """The sections corpus, split and task of the index."""
    options = json.loads(json.dumps(asdict(task)))
    train, validation = (task.rows(split) for split in SPLITS)
    return {
        "corpus": {
            "name": name,
            "source": f"{PREFIX}{name}",
            "licence": "generated",
            "digest": corpus_digest([json.dumps([name, options, seed], sort_keys=True)]),
            "documents": train + validation,
        },
        "split": {"method": "rows", "validation": validation / (train + validation), "seed": seed},
        "task": {"name": name, "options": options, "row": task.length + 1, "labelled": task.labelled},
    }


def task_rows(task: Task, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both splits; no validation row is also a training row.

    Shapes: per split ids [rows, L + 1], scored bool [rows, L + 1].
    Raises: DataError for a task that has too few different rows for that.
    """
    train = [task.sample(seed, "train", i) for i in range(task.rows("train"))]
    seen, needed = {row.ids.tobytes() for row in train}, task.rows("validation")
    drawn = (task.sample(seed, "validation", i) for i in range(CANDIDATES * needed))
    validation = list(islice((row for row in drawn if row.ids.tobytes() not in seen), needed))
    if len(validation) < needed:
        raise DataError(
            f"only {len(validation)} of {needed} validation rows are not among the {len(train)} of training: "
            "the task can be learned by heart; give it a larger vocabulary or length, or fewer train_rows"
        )
    return {
        split: (np.stack([row.ids for row in rows]), np.stack([row.scored for row in rows]))
        for split, rows in zip(SPLITS, (train, validation), strict=True)
    }
