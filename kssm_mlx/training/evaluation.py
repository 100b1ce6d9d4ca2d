"""How well a model predicts held-out windows, and how much of that is due to what it remembers.

Deterministic: the windows are given, nothing is drawn, and no training state is seen or touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.data.tasks import Task
from kssm_mlx.data.tokens import TokenData, TokenSplit, text_bytes
from kssm_mlx.errors import ConfigError, DataError
from kssm_mlx.metrics.language import summarize_losses
from kssm_mlx.metrics.ngrams import ngram_ladder
from kssm_mlx.models.base import Intervention, LanguageModel, training_mode, with_parameters
from kssm_mlx.training.losses import chunk_for, chunked_token_scores, split_rows, token_scores
from kssm_mlx.training.parallel.ranks import ALONE, Ranks

PerTarget = Callable[[int], float]
# Of the context gain, wherever it is measured: each costs a forward pass of one token; se below 0.03 nats.
GAIN_TOKENS = 8192
PADDING = -1


class Scores(NamedTuple):
    """Shapes: tokens int [N, T+1] or, of labelled rows, [N, 2, T], as the windows have them; per target
    [N, T], 0 where it is not scored: nats; hits, 1 where the model's first choice was right.
    """

    tokens: np.ndarray
    nats: np.ndarray
    hits: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        return (self.tokens[:, 1] if self.tokens.ndim == 3 else self.tokens[:, 1:]) >= 0

    @property
    def ids(self) -> np.ndarray:
        """The rows as a task makes them. Shapes: [N, T+1]."""
        if self.tokens.ndim == 3:
            return np.pad(self.tokens[:, 0], [(0, 0), (0, 1)])
        return np.where(self.tokens < 0, -2 - self.tokens, self.tokens)


def make_evaluator(
    model: LanguageModel,
    *,
    task: Task | None = None,
    intervention: Intervention | None = None,
    compile: bool = True,
    ranks: Ranks = ALONE,
) -> Callable[..., dict[str, float]]:
    """`evaluate` for use again and again: compiled once, parameters an argument, in evaluation mode.

    The result is called as `evaluator(params, windows, bytes_per_target)`; params may be the fp32 masters.
    Its `task` says whose rows these are, where they are not those of the task given here. ranks: who share
    the windows, batch by batch, and all have the same numbers then: those of one process.
    """
    score = _make_score(model, compile, intervention)

    def evaluator(
        params: dict[str, Any],
        windows: Iterable,
        bytes_per_target: PerTarget,
        task: Task | None = task,
        also: Callable[[Scores], dict[str, float]] = lambda scores: {},
    ) -> dict[str, float]:
        batches = []
        for i, (tokens, resets) in enumerate(windows):
            own = i % ranks.size == ranks.rank
            batches.append(score(params, *_arrays(tokens, resets)) if own else _mask_window(tokens))
        scores = _add_scores(_join_scores(batches), ranks)
        of_task = task_metrics(scores, task) if task else {}
        return {**language_metrics(scores, bytes_per_target), **of_task, **also(scores)}

    return evaluator


def evaluate(
    model: LanguageModel, windows: Iterable, bytes_per_target: PerTarget, task: Task | None = None
) -> dict[str, float]:
    """nats_per_token, se, perplexity, perplexity_se, bits_per_byte, accuracy, tokens and windows of `model`
    on `windows`, over the targets that are scored; on a task also what `task_metrics` adds.

    windows: an iterable of (tokens int [N, T+1], resets bool [N, T] or None), as `data.batches` gives them.
    bytes_per_target: number of scored tokens -> UTF-8 bytes of their text per token, as `TokenData` has it.
    Raises: ConfigError when there is no window; DataError for a window with padding.
    """
    return make_evaluator(model, task=task)(model.parameters(), windows, bytes_per_target)


def context_gain(model: LanguageModel, windows: Iterable, *, compile: bool = True) -> dict[str, float]:
    """What context is worth: nats per token seeing one token only, less nats per token in full context.

    Every position of a window becomes a sequence of its own, of length one, with a fresh state: an exact cut
    of the context for any model. A model that carries nothing across time gains exactly 0. The standard error
    `context_gain_se` is that of paired windows.

    Raises: as `evaluate`.
    """
    score, params = _make_score(model, compile), model.parameters()
    full, alone = [], []
    for tokens, resets in windows:
        tokens, resets = _arrays(tokens, resets)
        full.append(score(params, tokens, resets))
        alone.append(score(params, _pairs(tokens), None).nats.reshape(full[-1].nats.shape))
    full, alone = _join_scores(full), np.concatenate(alone)
    gain = summarize_losses(_per_window(alone - full.nats, full.scored))
    return {
        "nats_per_token": summarize_losses(_per_window(full.nats, full.scored)).loss.value,
        "nats_one_token": summarize_losses(_per_window(alone, full.scored)).loss.value,
        "context_gain": gain.loss.value,
        "context_gain_se": gain.loss_se,
    }


def window_losses(model: LanguageModel, windows: Iterable, *, compile: bool = True) -> np.ndarray:
    """Nats per token of each window, the independent units of a comparison. Raises: as `evaluate`.

    Shapes: [windows].
    """
    score, params = _make_score(model, compile), model.parameters()
    scores = _join_scores([score(params, *_arrays(tokens, resets)) for tokens, resets in windows])
    return _per_window(scores.nats, scores.scored)


def language_metrics(scores: Scores, bytes_per_target: PerTarget) -> dict[str, float]:
    """The numbers of an evaluation from the scores of every target; standard errors are over windows."""
    result, tokens = summarize_losses(_per_window(scores.nats, scores.scored)), int(scores.scored.sum())
    return {
        "nats_per_token": result.loss.value,
        "se": result.loss_se,
        "perplexity": result.perplexity,
        "perplexity_se": result.perplexity_se,
        "bits_per_byte": result.loss.to_bits_per_byte(bytes_per_target(tokens)).value,
        "accuracy": float(scores.hits[scores.scored].mean()),
        "tokens": tokens,
        "windows": result.windows,
    }


def source_metrics(scores: Scores, data: TokenData) -> dict[str, float]:
    """`nats_per_token:NAME` and `bits_per_byte:NAME` of each source of a mixture, of those targets that are
    its own; {} where there is one text. scores: of the first windows of the validation side.
    """
    owners, parts = data.validation.owners, data.train.parts
    if owners is None:
        return {}
    places = np.arange(1, scores.nats.size + 1)
    documents = np.searchsorted(data.validation.starts, places, side="right") - 1
    found, nats = {}, scores.nats.ravel()
    for i, part in enumerate(parts):
        own = owners[documents] == i
        if own.any():
            size = text_bytes(data.tokenizer, data.validation.ids[places[own]])
            found[f"nats_per_token:{part.name}"] = float(nats[own].mean())
            found[f"bits_per_byte:{part.name}"] = float(nats[own].sum() / max(1, size) / math.log(2))
    return found


def ladder_of(data: TokenData, targets: int, period: int | None = None) -> dict[str, float]:
    """The n-gram ladder of a run's training side on its first `targets` scored validation targets; of a
    labelled task each rung predicts the label from the tokens read last. Arguments and keys: `ngram_ladder`.
    """
    answers, scored = data.validation.first(targets)
    if data.validation.labels is None:
        return ngram_ladder(data.train.ids, answers, data.vocab_size, period, scored)
    labels = (_pick_labels(data.train, data.train.ids.size), _pick_labels(data.validation, targets))
    train, held_out = data.train.ids[: labels[0].size], data.validation.ids[: labels[1].size]
    return ngram_ladder(train, held_out, data.vocab_size, period, scored, labels)


def _pick_labels(split: TokenSplit, targets: int) -> np.ndarray:
    """The labels of the first `targets` scored places, -1 where none is asked for. Shapes: [N]."""
    labels, scored = split.first(targets)
    assert scored is not None  # a task has it
    return np.where(scored, labels.astype(np.int64), -1)


def task_metrics(scores: Scores, task: Task) -> dict[str, float]:
    """skill, the ceiling of the accuracy and the floor of the nats; and for each named place of the task
    (the tail of a stream, the distance of a key) its own accuracy, nats and skill.
    """
    bound, accuracy = task.bound(), scores.hits[scores.scored].mean()
    metrics = {"skill": task.skill(accuracy), "ceiling": bound.accuracy, "floor": bound.nats}
    places = [task.places(ids) for ids in scores.ids]
    for name in places[0]:
        chosen = scores.scored & np.stack([row[name] for row in places])
        if chosen.any():
            accuracy = scores.hits[chosen].mean()
            metrics[f"accuracy_{name}"] = accuracy
            metrics[f"nats_{name}"] = scores.nats[chosen].mean()
            metrics[f"skill_{name}"] = task.skill(accuracy, name)
    return {name: float(value) for name, value in metrics.items()}


def _make_score(model: LanguageModel, compile: bool, intervention: Intervention | None = None):
    """`score(params, tokens, resets) -> Scores`."""

    def score(params, tokens, resets):
        with training_mode(model, training=False):
            return with_parameters(model, params, lambda: _token_scores(model, tokens, resets, intervention))

    scored = mx.compile(score) if compile else score

    def score_batch(params, tokens: mx.array, resets: mx.array | None) -> Scores:
        # One batch of logits in memory at a time; float64, so that the order of the sum does not matter.
        nats, hits = np.array(scored(params, tokens, resets)).astype(np.float64)
        return Scores(np.array(tokens), nats, hits)

    return score_batch


def _token_scores(model: LanguageModel, tokens: mx.array, resets: mx.array | None, intervention) -> mx.array:
    """Of every target; where the vocabulary is large, never all logits at once."""
    inputs, targets = split_rows(tokens)
    (B, T), chunked = inputs.shape, hasattr(model, "hidden")
    chunk = chunk_for(B, T, model.args.vocab_size) if chunked else None
    if chunk is None:
        return token_scores(model.forward(inputs, None, intervention, resets=resets).logits, targets)
    hidden = model.hidden(inputs, None, intervention, resets=resets)[0]
    return chunked_token_scores(hidden, model.project, targets, chunk)


def _mask_window(tokens: np.ndarray) -> Scores:
    """Of windows that another rank scores."""
    tokens = np.array(tokens)
    nothing = np.zeros((tokens[:, 1] if tokens.ndim == 3 else tokens[:, 1:]).shape)
    return Scores(tokens, nothing, nothing)


def _add_scores(scores: Scores, ranks: Ranks) -> Scores:
    """Each window as the rank has scored it that did: fp32, as it was measured, and zeros of the others."""
    if ranks.size == 1:
        return scores
    nats, hits = (mx.array(a.astype(np.float32)) for a in (scores.nats, scores.hits))
    nats, hits = ranks.sum([nats, hits])
    return Scores(scores.tokens, *(np.array(a).astype(np.float64) for a in (nats, hits)))


def _arrays(tokens, resets) -> tuple[mx.array, mx.array | None]:
    tokens = mx.array(tokens)
    if mx.any(tokens == PADDING).item():
        raise DataError("an evaluation window has padding (a token -1); give windows that are full")
    return tokens, None if resets is None else mx.array(resets)


def _pairs(tokens: mx.array) -> mx.array:
    """Each input with its target, as windows of their own. Shapes: [N, T+1] -> [N T, 2], [N, 2, T] ->
    [N T, 2, 1].
    """
    if tokens.ndim == 3:
        return tokens.transpose(0, 2, 1).reshape(-1, 2, 1)
    return mx.stack([tokens[:, :-1], tokens[:, 1:]], axis=-1).reshape(-1, 2)


def _join_scores(batches: list[Scores]) -> Scores:
    """Raises: ConfigError when there is no window; DataError when no target in them is scored."""
    if not batches:
        raise ConfigError(
            "no window to evaluate; eval.tokens must cover at least one of train.context tokens"
        )
    scores = Scores(*map(np.concatenate, zip(*batches, strict=True)))
    if not scores.scored.any():
        raise DataError("no target of these windows is scored; a task's rows must be read to their end")
    return scores


def _per_window(values: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """One value per window, whose mean is that of all scored targets and whose spread is that of this mean.

    Windows of equally many targets have their own means; elsewhere it is the linearised ratio of sums.
    Shapes: values, 0 where not scored, and scored [N, T] -> [N].
    """
    counts = scored.sum(axis=-1)
    mean = values.sum() / counts.sum()
    return mean + (values.sum(axis=-1) - mean * counts) / counts.mean()
