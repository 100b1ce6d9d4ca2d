"""One text, or the sources of a mixture, that are never in memory whole: the bytes of `texts`, in pieces.

Each source has a folder of work, `.stream/0` and on: what is left of it without repeats, the survey, the ids
so far and a journal. What a kill leaves there is gone on with. The sides of a mixture are laid from the
finished ids of its sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kssm_mlx import files
from kssm_mlx.data.index import MIXED, SPLITS
from kssm_mlx.data.mixtures import apportion, cut_pieces, take_turns
from kssm_mlx.data.preparation.making import (
    Described,
    Source,
    Written,
    allows_special_tokens,
    characters_lost,
    describe_texts,
    mixed_sources,
)
from kssm_mlx.data.shards import read_blocks, release
from kssm_mlx.data.streams.documents import Stream
from kssm_mlx.data.streams.repeats import without_repeats
from kssm_mlx.data.streams.survey import Plan, Survey, Texts, plan
from kssm_mlx.data.streams.writer import Grown, open_side, survey_once, write_stream
from kssm_mlx.data.tokenizers.factory import make_tokenizer

WORK = ".stream"
RELEASED = 1 << 10  # pieces laid between two times that pages are given back
Advance = Callable[[int], None]


class _Text(NamedTuple):
    stream: Stream
    survey: Survey
    plan: Plan
    work: Path

    @property
    def described(self) -> Described:
        stream, found, split = self.stream, self.survey, self.plan
        facts = (stream.name, stream.source, stream.licence, found.digest, len(found.keys))
        return Described(*facts, split.method, split.share)


class _All:
    """The documents of several texts: what a tokenizer is built from."""

    def __init__(self, texts: Sequence[Texts]):
        self._texts = texts

    def __len__(self) -> int:
        return sum(map(len, self._texts))

    def __iter__(self) -> Iterator[str]:
        return (piece for text in self._texts for piece in text)


def prepare_streams(recipe: Any, streams: Sequence[Stream], folder: Path, advance: Advance) -> Source:
    """As `prepare_texts`, with equal ids and digests."""
    sources = mixed_sources(recipe)
    weights = [each.weight for each in sources]
    if sources:
        apportion(tuple(weights))  # only to refuse a weight without a row before anything is read
    texts = [_survey(stream, recipe, folder / WORK / str(i), advance) for i, stream in enumerate(streams)]
    special = allows_special_tokens(recipe)
    everything = _All([Texts(each.stream, each.survey) for each in texts])
    trained = _All([Texts(each.stream, each.survey, each.plan) for each in texts])
    tokenizer = make_tokenizer(recipe.tokenizer, everything, trained, special_tokens=special)
    origin = describe_texts(recipe, [each.described for each in texts], tokenizer)
    options = {"special_tokens": special, "lost": characters_lost, "advance": advance, "identity": origin}

    def write(folder: Path, dtype: np.dtype) -> Written:
        parts = [
            write_stream(each.stream, each.survey, each.plan, tokenizer, each.work, dtype, **options)
            for each in texts
        ]
        sides = dict(zip(SPLITS, zip(*parts, strict=True), strict=True))
        if not sources:
            return Written({name: _finish(folder, own, own[0]) for name, own in sides.items()})
        laid = {name: open_side(folder / WORK / "laid", name, dtype) for name in SPLITS}
        _lay_end_to_end(sides["train"], laid["train"])
        owners = _lay_in_turns(sides["validation"], weights, laid["validation"])
        files.replace(folder / MIXED, owners.tobytes())
        trained = tuple(own.ids.count for own in sides["train"])
        return Written({name: _finish(folder, own, laid[name]) for name, own in sides.items()}, trained)

    return Source(origin, tokenizer, write)


def _survey(stream: Stream, recipe: Any, work: Path, advance: Advance) -> _Text:
    if getattr(recipe, "deduplicate", False):
        stream = without_repeats(stream, work)
    found = survey_once(stream, work, advance)
    return _Text(stream, found, plan(stream, found, recipe.split, recipe.validation, recipe.seed), work)


def _lay_end_to_end(sources: Sequence[Grown], into: Grown) -> None:
    """The training side: one source behind the other, because every row is drawn from one of them."""
    for own in sources:
        for block in read_blocks(own.starts.read()):
            into.starts.append(block + into.ids.count)
        for block in read_blocks(own.ids.read()):
            into.ids.append(block)


def _lay_in_turns(sources: Sequence[Grown], weights: Sequence[float], into: Grown) -> np.ndarray:
    """The validation side: pieces by weight, because evaluations score its beginning. Returns the source of
    each.
    """
    held = [own.ids.read() for own in sources]
    turns = take_turns([cut_pieces(np.array(own.starts.read()), own.ids.count) for own in sources], weights)
    for number, turn in enumerate(turns):
        into.starts.append(np.array([into.ids.count]))
        into.ids.append(held[turn.source][turn.begin : turn.end])
        if number % RELEASED == 0:
            for ids in held:
                release(ids)
    return np.array([turn.source for turn in turns], np.uint8)


def _finish(folder: Path, sources: Sequence[Grown], side: Grown) -> dict[str, float]:
    """Give the files of a side their names; returns its sizes, and what the worst of its sources has lost."""
    for grown in (side.ids, side.starts):
        grown.move(folder)
    return {
        "tokens": side.ids.count,
        "documents": side.starts.count,
        "utf8_bytes": sum(own.sizes.utf8_bytes for own in sources),
        "lost": max(own.sizes.lost for own in sources),
    }
