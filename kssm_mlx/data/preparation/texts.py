"""One text, or the sources of a mixture, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kssm_mlx.data.corpora.corpus import Corpus, corpus_digest
from kssm_mlx.data.corpora.repeats import remove_repeated_paragraphs
from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.index import SPLITS
from kssm_mlx.data.mixtures import apportion, cut_pieces, take_turns
from kssm_mlx.data.preparation.making import (
    Described,
    Side,
    Source,
    Written,
    allows_special_tokens,
    characters_lost,
    describe_texts,
    mixed_sources,
    write_side,
)
from kssm_mlx.data.splits import split_corpus
from kssm_mlx.data.tokenizers.factory import make_tokenizer
from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.data.tokens import TokenSplit, encode_documents
from kssm_mlx.errors import DataError


class _Text(NamedTuple):
    """A corpus and its two sides, by name."""

    described: Described
    everything: list[str]
    sides: dict[str, list[str]]


def prepare_texts(recipe: Any) -> Source:
    """With one tokenizer, which is learned from what all sources train on, if it is learned."""
    sources = mixed_sources(recipe)
    weights = [each.weight for each in sources]
    if sources:
        apportion(tuple(weights))  # only to refuse a weight without a row before anything is read
    texts = [_open_text(each.source, recipe) for each in sources or [recipe]]
    special = allows_special_tokens(recipe)
    everything = [text for each in texts for text in each.everything]
    trained = [text for each in texts for text in each.sides["train"]]
    tokenizer = make_tokenizer(recipe.tokenizer, everything, trained, special_tokens=special)

    def write(folder: Path, dtype: np.dtype) -> Written:
        train, validation = (
            [_text_side(name, each.sides[name], tokenizer, special) for each in texts] for name in SPLITS
        )
        for each, own in zip(texts, train, strict=True):
            if not own.split.ids.size:
                raise DataError(f"{each.described.name} has no token to train on; give more text")
        both = (
            (_lay_end_to_end(train), _lay_in_turns(validation, weights)) if sources else (*train, *validation)
        )
        sizes = {side.split.name: write_side(folder, side, tokenizer.vocab_size, dtype) for side in both}
        return Written(sizes, tuple(own.split.ids.size for own in train) if sources else ())

    return Source(describe_texts(recipe, [each.described for each in texts], tokenizer), tokenizer, write)


def _open_text(source: str, recipe: Any) -> _Text:
    corpus = open_corpus(source)
    if getattr(recipe, "deduplicate", False):
        corpus = _deduplicate(corpus)
    both, method, share = split_corpus(corpus, recipe.split, recipe.validation, recipe.seed)
    everything = [*corpus.documents, *corpus.validation]
    facts = (corpus.name, corpus.source, corpus.licence, corpus.digest)
    return _Text(Described(*facts, len(everything), method, share), everything, dict(zip(SPLITS, both)))


def _deduplicate(corpus: Corpus) -> Corpus:
    """The corpus without what it says twice; its own validation text counts as the later one."""
    texts = remove_repeated_paragraphs([*corpus.documents, *corpus.validation])
    documents, validation = texts[: len(corpus.documents)], texts[len(corpus.documents) :]
    kept, held_out = ([text for text in side if text.strip()] for side in (documents, validation))
    digest = corpus_digest([*kept, *held_out])
    return replace(corpus, documents=kept, validation=tuple(held_out), digest=digest)


def _text_side(name: str, texts: Sequence[str], tokenizer: Tokenizer, special_tokens: bool) -> Side:
    split = encode_documents(name, texts, tokenizer, special_tokens=special_tokens)

    def lost() -> float:
        opening = tokenizer.separator_id is not None
        read = [text for text in texts if opening or text]  # an empty one has no ids if nothing opens it
        ends = [*split.starts[1:].tolist(), split.ids.size]
        ids = [split.ids[a + opening : b] for a, b in zip(split.starts.tolist(), ends, strict=True)]
        pairs = zip(read, ids, strict=False)
        gone = sum(characters_lost(text, tokenizer.decode(own.tolist())) for text, own in pairs)
        return gone / max(1, sum(map(len, texts)))

    return Side(split, sum(len(text.encode()) for text in texts), lost)


def _lay_end_to_end(sources: Sequence[Side]) -> Side:
    """The training side: one source behind the other, because every row is drawn from one of them."""
    begins = np.cumsum([0, *(own.split.ids.size for own in sources[:-1])]).tolist()
    starts = [own.split.starts + begin for own, begin in zip(sources, begins, strict=True)]
    ids = np.concatenate([own.split.ids for own in sources])
    return _merge(TokenSplit("train", ids, np.concatenate(starts)), sources)


def _lay_in_turns(sources: Sequence[Side], weights: Sequence[float]) -> Side:
    """The validation side: pieces by weight, because evaluations score its beginning."""
    turns = take_turns([cut_pieces(own.split.starts, own.split.ids.size) for own in sources], weights)
    ids = np.concatenate([sources[turn.source].split.ids[turn.begin : turn.end] for turn in turns])
    owners = np.array([turn.source for turn in turns], np.uint8)
    starts = np.cumsum([0, *(turn.end - turn.begin for turn in turns[:-1])])
    return _merge(TokenSplit("validation", ids, starts, owners=owners), sources)


def _merge(split: TokenSplit, sources: Sequence[Side]) -> Side:
    """A side with the text of all sources; it has lost what the worst of them has."""
    return Side(split, sum(own.utf8_bytes for own in sources), lambda: max(own.lost() for own in sources))
