"""Batches as pure functions of (seed, step): to resume is to ask for the next step.

A row of T + 1 tokens is T inputs and the T targets one place later. A token below zero is not scored as a
target: `-1` is padding (read as id 0), `-2 - id` is the id, read as an input; `training.losses.split_rows`
undoes it. Of a labelled task a row is its T inputs over its T labels, below zero where none is asked for.
`resets` marks the inputs that are the first token of a document. It is None for random and evaluation windows
of a split that is one document, and of a task, whose rows are drawn whole; it is an array otherwise, so what
a compiled step is given has the same shapes during a whole run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kssm_mlx.data.mixtures import assign_rows
from kssm_mlx.data.tokens import TokenSplit
from kssm_mlx.errors import DataError

NOT_ASKED = -2  # the label of a place that has none: below zero, and not the -1 of padding


class Batch(NamedTuple):
    """Shapes: tokens int32 [B, T + 1], of a labelled task [B, 2, T]; resets bool [B, T] or None."""

    tokens: np.ndarray
    resets: np.ndarray | None


def random_batch(split: TokenSplit, seed: int, step: int, batch_size: int, context: int) -> Batch:
    """Batch `step` of the windows of `split` in random order.

    An epoch cuts the stream into disjoint windows of `context` targets from a random offset and visits each
    once. Epochs follow each other without a gap, within a batch if need be. The windows of a task are its
    rows.

    Of a mixture each row is of the source that `mixtures.assign_rows` says, whose epochs are its own.

    Shapes: tokens [batch_size, context + 1].
    Raises: DataError if the split or its rows are shorter than one window.
    """
    if split.parts:
        return _mixed_batch(split, seed, step, batch_size, context)
    _require_windows(split, context)
    windows, offsets, stride = _lay_out_windows(split, context)
    # From the step alone, with no iterator to save: a resumed run reads on at the same token.
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), windows)
    starts = _start_windows((seed,), epochs, places, windows, offsets, stride)
    return _cut_windows(split, starts, context)


def count_sources(split: TokenSplit, seed: int, step: int, batch_size: int) -> dict[str, int]:
    """Rows of each source of a mixture in batch `step`; {} where there is one text."""
    if not split.parts:
        return {}
    rows = assign_rows(_weights(split), seed, step * batch_size, batch_size)
    counts = np.bincount(rows.sources, minlength=len(split.parts)).tolist()
    return {part.name: count for part, count in zip(split.parts, counts, strict=True)}


def _mixed_batch(split: TokenSplit, seed: int, step: int, batch_size: int, context: int) -> Batch:
    rows = assign_rows(_weights(split), seed, step * batch_size, batch_size)
    starts = np.empty(batch_size, np.int64)
    for i, part in enumerate(split.parts):
        length, own = part.end - part.begin, rows.sources == i
        if length <= context:
            raise DataError(
                f"data.sources: {part.name} has {length} tokens to train on, but context {context} and "
                "the token after it need more; give more text or lower train.context"
            )
        windows = max(1, (length - context) // context)
        offsets = min(context, length - windows * context)
        epochs, places = np.divmod(rows.ordinals[own], windows)
        starts[own] = part.begin + _start_windows((seed, i + 1), epochs, places, windows, offsets, context)
    return _cut_windows(split, starts, context)


def _weights(split: TokenSplit) -> tuple[float, ...]:
    return tuple(part.weight for part in split.parts)


def _start_windows(seeds: tuple[int, ...], epochs, places, windows: int, offsets: int, stride: int):
    """Where the windows at these places of these epochs start. Shapes: epochs, places [B] -> [B]."""
    starts = np.empty(len(epochs), np.int64)
    for epoch in np.unique(epochs):
        offset, order = _order_windows(seeds, int(epoch), windows, offsets)
        rows = epochs == epoch
        starts[rows] = offset + order[places[rows]] * stride
    return starts


def windows_per_epoch(split: TokenSplit, context: int) -> int:
    """How many windows `random_batch` visits before it begins again."""
    _require_windows(split, context)
    return _lay_out_windows(split, context)[0]


def track_batch(split: TokenSplit, step: int, batch_size: int, context: int) -> Batch:
    """Batch `step` of `batch_size` contiguous tracks, for state that is handed from batch to batch.

    Row b reads its own stretch of the stream, `context` tokens per step, and wraps to its beginning. Resets
    are at document starts and at the wrap, and nowhere else.

    Shapes: tokens [batch_size, context + 1], resets [batch_size, context], never None.
    Raises: DataError if a track would be shorter than one window, or a row of a task ends the text.
    """
    if split.parts:
        raise DataError("the sources of a mixture do not go on into each other; set train.hand_off = false")
    if split.row is not None:
        raise DataError("the rows of a task do not go on into each other; set train.hand_off = false")
    _require_tokens(
        split,
        batch_size * context + 1,
        f"{batch_size} tracks of context {context}",
        "train.batch_size or train.context",
    )
    track = (split.ids.size - 1) // batch_size
    place = step % (track // context)
    starts = np.arange(batch_size) * track + place * context
    positions = starts[:, None] + np.arange(context + 1)
    resets = _document_starts(split, positions[:, :-1])
    # At the wrap the state comes from the end of the track, which is not what came before its beginning.
    resets[:, 0] |= place == 0
    return Batch(split.ids[positions].astype(np.int32), resets)


def evaluation_windows(split: TokenSplit, tokens: int, context: int, batch_size: int) -> Iterator[Batch]:
    """The first disjoint windows of `split`, at most `tokens` targets but at least one window.

    Every call gives the same batches; the last may have fewer rows.

    Raises: as `random_batch`.
    """
    _require_windows(split, context)
    stride = split.row or context
    windows = split.starts.size if split.row else (split.ids.size - 1) // context
    starts = np.arange(max(1, min(windows, tokens // context))) * stride
    return (
        _cut_windows(split, starts[i : i + batch_size], context) for i in range(0, starts.size, batch_size)
    )


def _lay_out_windows(split: TokenSplit, context: int) -> tuple[int, int, int]:
    """(windows per epoch, number of possible offsets, places between windows), the same for every epoch."""
    if split.row is not None:
        return split.starts.size, 1, split.row
    length = split.ids.size
    windows = max(1, (length - context) // context)
    return windows, min(context, length - windows * context), context


@lru_cache(maxsize=16)
def _order_windows(seeds: tuple[int, ...], epoch: int, windows: int, offsets: int) -> tuple[int, np.ndarray]:
    """The offset and the order of the windows of one epoch; seeds: the run's, and the source of a mixture."""
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seeds[0], epoch, *seeds[1:]])))
    return int(random.integers(offsets)), random.permutation(windows)


def _cut_windows(split: TokenSplit, starts: np.ndarray, context: int) -> Batch:
    positions = starts[:, None] + np.arange(context + 1)
    tokens = split.ids[positions].astype(np.int32)
    if split.labels is not None and split.scored is not None:
        asked, labels = (a[positions[:, 1:]].astype(np.int32) for a in (split.scored, split.labels))
        return Batch(np.stack([tokens[:, :-1], np.where(asked > 0, labels, NOT_ASKED)], axis=1), None)
    if split.row is not None and split.scored is not None:
        target = split.scored[positions].astype(bool)
        target[:, 0] = True  # it is nobody's target, and is an id as any other
        return Batch(np.where(target, tokens, -2 - tokens), None)
    resets = _document_starts(split, positions[:, :-1]) if split.starts.size > 1 else None
    return Batch(tokens, resets)


def _document_starts(split: TokenSplit, positions: np.ndarray) -> np.ndarray:
    """Whether a document starts at each position."""
    following = np.searchsorted(split.starts, positions).clip(max=split.starts.size - 1)
    return split.starts[following] == positions


def _require_windows(split: TokenSplit, context: int) -> None:
    _require_tokens(split, context + 1, f"context {context} and the token after it", "train.context")
    if split.row is not None and context >= split.row:
        raise DataError(
            f"context {context} is longer than the rows of this task, which have {split.row - 1} targets; "
            f"set train.context = {split.row - 1}"
        )


def _require_tokens(split: TokenSplit, needed: int, what: str, key: str) -> None:
    if split.ids.size < needed:
        raise DataError(
            f"the {split.name} split has {split.ids.size} tokens, but {what} need {needed}; "
            f"give more text or lower {key}"
        )
