"""The rows of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from kssm_mlx.data.preparation.making import Side, Source, Written, describe_tokenizer, write_side
from kssm_mlx.data.tasks import PREFIX, make_task
from kssm_mlx.data.tasks.files import task_origin, task_rows
from kssm_mlx.data.tokenizers.plain import IdTokenizer
from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.data.tokens import TokenSplit


def prepare_task(recipe: Any) -> Source:
    name = recipe.source.removeprefix(PREFIX)
    task = make_task(name, recipe.task)
    tokenizer = cast(Tokenizer, IdTokenizer(task.vocab_size))

    def write(folder: Path, dtype: np.dtype) -> Written:
        sizes = {}
        for split, (ids, scored) in task_rows(task, recipe.seed).items():
            rows, row = ids.shape
            labels = task.answers(ids).ravel() if task.labelled else None
            made = TokenSplit(split, ids.ravel(), np.arange(rows) * row, scored.ravel(), row, labels)
            side = Side(made, len(tokenizer.decode(ids.ravel().tolist())), lambda: 0.0)
            sizes[split] = write_side(folder, side, tokenizer.vocab_size, dtype)
        return Written(sizes)

    origin = {**task_origin(name, task, recipe.seed), "tokenizer": describe_tokenizer(tokenizer)}
    return Source(origin, tokenizer, write)
