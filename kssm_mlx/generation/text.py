"""Text in, text out: prompts become rows of one batch, tokens become pieces of text as they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.data.tokenizers.streaming import StreamDecoder
from kssm_mlx.errors import ConfigError, DataError, WeightMismatch
from kssm_mlx.generation.decode import Step, decode, resume, start
from kssm_mlx.generation.sampling import Sampling
from kssm_mlx.generation.state import GenerationState
from kssm_mlx.models.base import LanguageModel, Trained


@dataclass(frozen=True)
class Piece:
    """A piece of text of one row, as soon as it is whole characters."""

    row: int
    text: str


@dataclass(frozen=True)
class Completion:
    """What one row said.

    ids and logprobs (nats, under the model before any filter) are of the drawn tokens, without the separator
    that ended the row; state is where this row stands, ready to go on or to be saved.
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: Literal["length", "separator"]
    state: GenerationState


def generate(model: LanguageModel | Trained, *given: Any, **options: Any) -> list[Completion]:
    """`stream` without the stream: the completions, one per prompt. Takes the options of `stream`.

    generate(kssm_mlx.load(path), prompts), or generate(model, tokenizer, prompts).
    Raises: ConfigError for other arguments, and as `stream`.
    """
    taken = (*model, *given) if isinstance(model, Trained) else (model, *given)
    if len(taken) != 3:
        raise ConfigError(
            "generate takes a model, a tokenizer and prompts, or what kssm_mlx.load gave and prompts; "
            f"got {', '.join(type(x).__name__ for x in (model, *given))}"
        )
    if taken[1] is None:
        raise ConfigError(f"{getattr(model, 'source', 'this model')} came without a tokenizer; give one")
    return follow(stream(*taken, **options))


def follow(
    pieces: Generator[Piece, None, list[Completion]], show: Callable[[Piece], None] | None = None
) -> list[Completion]:
    """Run a stream to its end, `show` each piece as it comes, and return what the stream returns."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return end.value
        if show:
            show(piece)


def stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    *,
    max_tokens: int = 256,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    state: GenerationState | None = None,
    stop_at_separator: bool = True,
    **sampling: float | str,
) -> Generator[Piece, None, list[Completion]]:
    """Continue one or several prompts as one batch; yields text as it comes, returns the completions.

    Every row is what it would be alone: its random numbers come from its own seed and do not depend on its
    place in the batch. So equal prompts give equal rows under one `seed`; `seeds`, one per prompt, makes them
    differ. With `state`, each prompt is added to its row of the state (an empty one just goes on), and the
    random numbers go on too: `seed` and `seeds` are then not read. `sampling` takes the fields of `Sampling`.

    Raises: ConfigError for options out of range, counts that do not match, or an empty prompt where there is
    no separator to start from; WeightMismatch for a state of another tokenizer; DataError for text outside
    the model's vocabulary.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    settings = Sampling(**sampling)
    seeds = [seed] * len(prompts) if seeds is None else seeds
    _refuse(tokenizer, prompts, max_tokens, seeds, state)
    steps = decode(
        model,
        _begin(model, tokenizer, prompts, seeds, state, settings.repetition_window),
        settings,
        vocab_size=tokenizer.vocab_size,
        stop_token=tokenizer.separator_id if stop_at_separator else None,
        max_tokens=max_tokens,
    )
    writers = [_Writer(i, prompt, tokenizer) for i, prompt in enumerate(prompts)]
    for step in steps:
        yield from _advance(writers, step)
    yield from (piece for writer in writers if (piece := writer.close()))
    return [writer.completion(step.state) for writer in writers]


class _Writer:
    """One row's tokens so far and the decoder that turns them into whole characters."""

    def __init__(self, row: int, prompt: str, tokenizer: Tokenizer):
        self.row, self.prompt, self.decoder = row, prompt, StreamDecoder(tokenizer)
        self.text, self.ids, self.logprobs, self.stopped = "", [], [], False

    def add(self, token: int, logprob: float) -> Piece | None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        return self._emit(self.decoder.push(token))

    def close(self) -> Piece | None:
        return self._emit(self.decoder.finish())

    def completion(self, state: GenerationState) -> Completion:
        finished = "separator" if self.stopped else "length"
        ids, logprobs = tuple(self.ids), tuple(self.logprobs)
        return Completion(self.prompt, self.text, ids, logprobs, finished, state.row(self.row))

    def _emit(self, text: str) -> Piece | None:
        self.text += text
        return Piece(self.row, text) if text else None


def _advance(writers: list[_Writer], step: Step) -> Generator[Piece, None, None]:
    """Hand each row that was still going its token; the separator ends a row and is not part of its text."""
    values = zip(writers, step.token.tolist(), step.logprob.tolist(), step.active.tolist())
    for writer, token, logprob, active in values:
        if writer.stopped:
            continue
        if not active:
            writer.stopped = True
        elif piece := writer.add(token, logprob):
            yield piece


def _begin(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: list[str],
    seeds: Sequence[int],
    state: GenerationState | None,
    window: int,
) -> GenerationState:
    """The state after reading the prompts, from the given state or from a blank one."""
    rows = [_encode(tokenizer, text, model.args.vocab_size) for text in prompts]
    if state is not None:
        return resume(model, state, rows, window)
    rows = [row if len(row) else _blank(tokenizer) for row in rows]
    return start(model, rows, seeds, window, tokenizer.digest)


def _refuse(
    tokenizer: Tokenizer | None,
    prompts: list[str],
    max_tokens: int,
    seeds: Sequence[int],
    state: GenerationState | None,
) -> None:
    if tokenizer is None:
        raise ConfigError("this model came without a tokenizer, so it cannot read a prompt")
    if not prompts:
        raise ConfigError("no prompt; give at least one, an empty one starts a new document")
    if max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; it must be 1 or more")
    if len(seeds) != len(prompts):
        raise ConfigError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed, or one per prompt")
    if any(not 0 <= s < 1 << 64 for s in seeds):
        raise ConfigError(f"seeds are whole numbers from 0 on, got {', '.join(map(str, seeds))}")
    if state is not None and len(state) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts for a state of {len(state)} conversations; give one each")
    if state is not None and state.tokenizer_digest != tokenizer.digest:
        raise WeightMismatch(
            f"the state was written with tokenizer {state.tokenizer_digest[:12]}, this model uses "
            f"{tokenizer.digest[:12]}; their token ids mean different text"
        )


def _encode(tokenizer: Tokenizer, text: str, vocab_size: int) -> np.ndarray:
    """Token ids, all of which the model has an embedding for: MLX does not check bounds when it gathers."""
    ids = np.asarray(tokenizer.encode(text), dtype=np.int32)
    if len(ids) and ids.max() >= vocab_size:
        raise DataError(
            f"the prompt has token {ids.max()}, the model's vocabulary ends at {vocab_size - 1}; "
            f"{tokenizer.name} is not the tokenizer it was trained with"
        )
    return ids


def _blank(tokenizer: Tokenizer) -> np.ndarray:
    """What an empty prompt starts from: the separator, after which a document begins."""
    if tokenizer.separator_id is None:
        raise ConfigError(
            f"an empty prompt starts from the separator, tokenizer {tokenizer.name!r} has none; give a prompt"
        )
    return np.array([tokenizer.separator_id], dtype=np.int32)
