"""How a task is solved at lengths it was not trained on: accuracy at every place, and at the last one.

The rows are those of the validation split at that length: they depend on the seed, the split and their index
alone, as those in the token files do, and are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kssm_mlx.data.batches import Batch, evaluation_windows
from kssm_mlx.data.tasks import Task
from kssm_mlx.data.tasks.base import OfAnyLength
from kssm_mlx.data.tokens import TokenSplit

MOST_TOKENS = 1 << 15  # in one batch
SCORES = ("accuracy", "accuracy_last")  # of which a length has those that the task has


def measure_lengths(score: Callable[..., dict[str, float]], task: Task | None, seed: int) -> dict[str, float]:
    """`accuracy@256` and `accuracy_last@256` for each of the task's test lengths; {} where it has none.

    score: `evaluator(windows, bytes_per_target, task)` of training.evaluation, its parameters bound. seed:
    of the data.
    """
    if not isinstance(task, OfAnyLength):
        return {}
    found = {}
    for length in task.test_lengths:
        numbers = score(test_windows(task, length, seed), lambda targets: 1.0, task.at(length))
        found |= {f"{name}@{length}": numbers[name] for name in SCORES if name in numbers}
    return found


def test_windows(task: OfAnyLength, length: int, seed: int) -> Iterator[Batch]:
    """The task's `test_rows` validation rows of a length, equally many in each batch."""
    rows, longer = task.test_rows, task.at(length)
    sample = [longer.sample(seed, "validation", i) for i in range(rows)]
    ids, scored = (np.stack(parts) for parts in zip(*sample, strict=True))
    labels = task.answers(ids).ravel() if task.labelled else None
    starts = np.arange(rows) * (length + 1)
    split = TokenSplit("test", ids.ravel(), starts, scored.ravel(), length + 1, labels)
    return evaluation_windows(split, rows * length, length, _batch_size(rows, length))


def _batch_size(rows: int, length: int) -> int:
    """The largest divisor of `rows` that keeps a batch small: every other shape would compile anew."""
    most = max(1, MOST_TOKENS // length)
    return max(size for size in range(1, rows + 1) if rows % size == 0 and size <= most)
