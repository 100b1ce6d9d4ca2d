"""Are the rows of a task what its seed says, and is none of them on both sides?"""

from __future__ import annotations

import hashlib

import numpy as np

from kssm_mlx.checks.core.registry import Check, Context, check, verdict
from kssm_mlx.checks.data.task_learnability import task_of
from kssm_mlx.data.tokens import TokenSplit

AGAIN = 64  # validation rows that are made a second time


@check(
    "G8",
    level="P",
    title="validation rows are new and never change",
    source="docs/background/allostasis.md#validation-rows",
)
def splits_are_disjoint(ctx: Context) -> Check:
    """The blake2 hash of every row of both splits: how many validation rows are also training rows, and how
    many occur twice among themselves. And whether the first 64 validation rows, made again from the seed of
    the recipe's data (those of training left out), are the rows in the files.

    Threshold: none on both sides, at most 1 % twice, all 64 equal: a task whose rows differ at every reading
    has no validation loss.
    Caught: ToySequence, whose train and validation reset the global seed to 42 and shared their prefix; the
    interleaved task, which ignored its index and drew anew at every access.
    Sabotage: a validation split that is training; one row changed; rows of another seed.
    """
    task = task_of(ctx)
    train, validation = map(_hashes, (ctx.data.train, ctx.data.validation))
    known = set(train)
    shared = sum(row in known for row in validation)
    twice = len(validation) - len(set(validation))
    changed = _count_changed_rows(ctx.data.validation, task, ctx.data.index["split"]["seed"], known)
    problems = [f"{shared} of {len(validation)} rows are also in training"] if shared else []
    problems += [f"{twice} rows occur twice"] if twice > 0.01 * len(validation) else []
    problems += [f"{changed} of the first {AGAIN} rows are not those of the seed"] if changed else []
    return verdict(
        "G8",
        not problems,
        "; ".join(problems) or f"{len(train)} + {len(validation)} rows, none shared, made again as they are",
        "no row on both sides, and rows that depend on (seed, split, index) alone",
        "prepare the data again in an empty folder; a row must not depend on what was drawn before it",
        shared=shared,
        twice=twice,
        changed=changed,
    )


def _rows(split: TokenSplit) -> np.ndarray:
    assert split.row is not None  # of a task
    return np.asarray(split.ids).reshape(-1, split.row).astype(np.int64)


def _hashes(split: TokenSplit) -> list[bytes]:
    return [_hash(row) for row in _rows(split)]


def _hash(row: np.ndarray) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _count_changed_rows(split: TokenSplit, task, seed: int, train: set[bytes]) -> int:
    """How many of the first rows are not what the generator makes, training rows left out."""
    kept, changed, index = _rows(split)[:AGAIN], 0, 0
    for row in kept:
        made = task.sample(seed, "validation", index).ids.astype(np.int64)
        while _hash(made) in train and index < 100 * AGAIN:
            index += 1
            made = task.sample(seed, "validation", index).ids.astype(np.int64)
        changed += not np.array_equal(made, row)
        index += 1
    return changed
