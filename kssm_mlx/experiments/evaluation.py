"""What `kssm eval` measures: a model on held-out text, beside what counting reaches on the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kssm_mlx.data.batches import evaluation_windows
from kssm_mlx.data.corpora import open_corpus
from kssm_mlx.data.tokenizers import Tokenizer
from kssm_mlx.data.tokens import TokenData, TokenSplit, encode_documents
from kssm_mlx.errors import CheckpointError
from kssm_mlx.metrics.ngrams import ngram_ladder
from kssm_mlx.models.base import Trained
from kssm_mlx.training import evaluation

GAIN_TOKENS = 16384  # each costs a forward pass of one token; standard error below 0.02 nats


def evaluate(
    trained: Trained, folder: str | Path, *, source: str | None = None, tokens: int | None = None
) -> dict[str, Any]:
    """Score the model of a run on its validation text or, read by its tokenizer, on another `source`.

    Returns "data", the numbers of `training.evaluation.language_metrics`, "context_gain" and its standard
    error, and the "ladder" of n-gram models counted on the run's training text, all losses in nats/token.

    Raises: CheckpointError, DataError for a run or a text that cannot be used.
    """
    recipe = _recipe(Path(folder))
    data = TokenData.open(Path(folder) / "data")
    split, bytes_per_token = _held_out(data) if source is None else _foreign(source, trained.tokenizer)
    tokens = tokens or recipe["eval"]["tokens"]

    def windows(count: int):
        return evaluation_windows(split, count, recipe["train"]["context"], recipe["train"]["batch_size"])

    numbers = evaluation.evaluate(trained.model, windows(tokens), bytes_per_token)
    gain = evaluation.context_gain(trained.model, windows(min(tokens, GAIN_TOKENS)))
    ladder = ngram_ladder(data.train.ids, split.ids[: numbers["tokens"] + 1], data.vocab_size)
    return {
        "data": source or f"validation of {folder}",
        **numbers,
        **{name: gain[name] for name in ("context_gain", "context_gain_se")},
        "ladder": {rung: ladder[rung] for rung in ("uniform", "unigram", "bigram", "trigram")},
    }


def _held_out(data: TokenData) -> tuple[TokenSplit, float]:
    return data.validation, data.bytes_per_token_validation


def _foreign(source: str, tokenizer: Tokenizer) -> tuple[TokenSplit, float]:
    """All of another corpus as one split, and its UTF-8 bytes per token."""
    documents = open_corpus(source).documents
    split = encode_documents(source, documents, tokenizer)
    return split, sum(len(text.encode()) for text in documents) / max(split.ids.size, 1)


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "recipe.json").read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a run folder: it has no recipe.json") from None
