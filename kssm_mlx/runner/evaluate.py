"""What `kssm eval` measures: a model on held-out text, beside what counting reaches on the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.registry import NotMeasurable
from kssm_mlx.checks.pretrained.behaviour import count_ngrams
from kssm_mlx.checks.pretrained.subject import TOKENS, Subject
from kssm_mlx.data.batches import Batch, evaluation_windows
from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.streams.cuts import encode_pieces
from kssm_mlx.data.streams.documents import Stream, open_streams
from kssm_mlx.data.tasks import Task
from kssm_mlx.data.tasks.tracking import Dense
from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.data.tokens import TokenData, TokenSplit, bytes_per_target, encode_documents
from kssm_mlx.errors import DataError
from kssm_mlx.metrics.separation import measure_spread
from kssm_mlx.models.base import LanguageModel, Trained, training_mode
from kssm_mlx.runs.layout import find_run
from kssm_mlx.runs.records import read_recipe
from kssm_mlx.training import evaluation
from kssm_mlx.training.curriculum.lengths import test_windows


class Reading(NamedTuple):
    """What a model is scored on. windows: of a number of tokens; tokens: how many by default; ladder:
    nats/token of counting, given how many targets were scored; task: whose rows these are, if a task's; seed:
    of their data.
    """

    name: str
    windows: Callable[[int], Iterator[Batch]]
    tokens: int
    bytes_per_target: Callable[[int], float]
    ladder: Callable[[int], dict[str, float]]
    task: Task | None = None
    seed: int = 0


def evaluate(
    trained: Trained, path: str | Path, *, source: str | None = None, tokens: int | None = None
) -> dict[str, Any]:
    """Score a model on a text: a run on its own validation text, any other model on the English of the
    package, or either on another `source`, read by its tokenizer.

    Returns "data", the numbers of `training.evaluation.language_metrics`, "context_gain" and its standard
    error, and the "ladder" of n-gram models, all losses in nats/token. The n-grams are counted on a run's
    training text; for other models on the scored text itself, each eighth of it by the rest. Of a run on a
    task with a label at every place also "lengths", for its train and test lengths: `measure_tracking`.

    Raises: CheckpointError, DataError for a run or a text that cannot be used.
    """
    folder = find_run(Path(path))
    reading = _evaluate_run(trained, folder, source, tokens) if folder else _evaluate_model(trained, source)
    tokens = tokens or reading.tokens
    windows = reading.windows(tokens)
    numbers = evaluation.evaluate(trained.model, windows, reading.bytes_per_target, reading.task)
    gain = evaluation.context_gain(trained.model, reading.windows(min(tokens, evaluation.GAIN_TOKENS)))
    return {
        "data": reading.name,
        **numbers,
        **{name: gain[name] for name in ("context_gain", "context_gain_se")},
        "ladder": reading.ladder(int(numbers["tokens"])),
        **_measure_lengths(trained.model, reading),
    }


def _measure_lengths(model: LanguageModel, reading: Reading) -> dict[str, Any]:
    task = reading.task
    return {"lengths": measure_tracking(model, task, reading.seed)} if isinstance(task, Dense) else {}


def measure_tracking(model: LanguageModel, task: Dense, seed: int) -> dict[int, dict[str, float]]:
    """By length, from the second half of the task's test rows: "accuracy", and "spread", how far the answers'
    logits have blurred (metrics/separation.py), beside those at the length of training. seed: of the data.
    """
    found, reference = {}, _answer_logits(model, task, task.train_length, seed)
    for length in (task.train_length, *task.test_lengths):
        logits, labels = _answer_logits(model, task, length, seed)
        accuracy = float((logits.argmax(axis=-1) == labels).mean())
        found[length] = {"accuracy": accuracy, "spread": measure_spread(*reference, logits, labels)}
    return found


def _answer_logits(
    model: LanguageModel, task: Dense, length: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits less their mean, which decides nothing, and the answers. Shapes: [N, V], int [N]."""
    logits, labels = [], []
    with training_mode(model, False):
        for tokens, _ in test_windows(task, length, seed):
            read = model.forward(mx.array(tokens[:, 0])).logits[:, length // 2 :].astype(mx.float32)
            logits.append(np.array(read - read.mean(axis=-1, keepdims=True)).reshape(-1, read.shape[-1]))
            labels.append(tokens[:, 1, length // 2 :].ravel())
    return np.concatenate(logits), np.concatenate(labels)


def _evaluate_run(trained: Trained, folder: Path, source: str | None, tokens: int | None) -> Reading:
    recipe = read_recipe(folder)
    data = TokenData.open(folder / "data")
    special, by_document = data.index["special_tokens"], recipe["model"].get("train") in ("state", "prompt")
    # Of each document a row is scored there, so that how much text it takes is not known beforehand.
    most = None if by_document else tokens or recipe["eval"]["tokens"]
    split = data.validation if source is None else _read_foreign(source, trained.tokenizer, special, most)
    if by_document:
        context = recipe["train"]["context"]
        data, split = data.cut_at_documents(context), split.cut_at_documents(context)

    def windows(count: int) -> Iterator[Batch]:
        return evaluation_windows(split, count, recipe["train"]["context"], recipe["train"]["batch_size"])

    def ladder(targets: int) -> dict[str, float]:
        rungs = evaluation.ladder_of(replace(data, validation=split), targets)
        return {rung: rungs[rung] for rung in ("uniform", "unigram", "bigram", "trigram")}

    per_target = partial(bytes_per_target, split, trained.tokenizer)
    name, task = source or f"validation of {folder}", data.task if source is None else None
    return Reading(name, windows, recipe["eval"]["tokens"], per_target, ladder, task, recipe["data"]["seed"])


def _evaluate_model(trained: Trained, source: str | None) -> Reading:
    """The text as L5 of `kssm verify-weights` reads it. Raises: DataError without a tokenizer for it."""
    text = None if source is None else "\n".join(open_corpus(source).scored)
    subject = Subject(model=trained.model, tokenizer=trained.tokenizer, text=text)
    try:
        text_read = subject.reading
    except NotMeasurable as e:
        raise DataError(f"{trained.source}: {trained.notes.get('hint') or e}") from None
    ids, V = np.asarray(text_read.validation.ids), trained.model.args.vocab_size
    name = source or "the English of the package"
    return Reading(
        name,
        subject.windows,
        TOKENS,
        text_read.bytes_per_target,
        lambda targets: count_ngrams(ids, targets + 1, V),
    )


def _read_foreign(source: str, tokenizer: Tokenizer, special_tokens: bool, most: int | None) -> TokenSplit:
    """All of another corpus, or its own validation, as one split; special_tokens as in the run's text. Of a
    large one no more than what `most` targets need, where it is given.
    """
    streams = [] if most is None else open_streams([source])
    if most is None or not streams:
        texts = open_corpus(source).scored
    else:
        texts = list(_read_beginning(streams[0], tokenizer, special_tokens, most))
    return encode_documents(source, texts, tokenizer, special_tokens=special_tokens)


def _read_beginning(stream: Stream, tokenizer: Tokenizer, special_tokens: bool, most: int) -> Iterator[str]:
    """The first documents, the last of them cut where more than `most` tokens are there."""
    found = 0
    for document in stream.documents():
        parts = []
        for text, ids in encode_pieces(document.pieces(), tokenizer, special_tokens):
            parts.append(text)
            found += ids.size
            if found > most:
                break
        yield "".join(parts)
        if found > most:
            return
