"""Text in, text out: prompts become rows of one batch, tokens become pieces of text as they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.data.tokenizers.streaming import StreamDecoder, Tail
from kssm_mlx.errors import CheckpointError, ConfigError, DataError
from kssm_mlx.generation.decode import Step, decode, resume, start
from kssm_mlx.generation.sampling import Sampling
from kssm_mlx.generation.state import GenerationState, require_fit
from kssm_mlx.models.base import Intervention, LanguageModel, Trained


@dataclass(frozen=True)
class Piece:
    """A piece of text of one row, as soon as it is whole characters."""

    row: int
    text: str


@dataclass(frozen=True)
class Completion:
    """What one row said.

    ids and logprobs (nats, under the model before any filter) are of the drawn tokens, without the stop token
    that ended the row ("separator"); state is where this row stands, ready to go on or be saved. A row that
    ended at a stop string ("stop") has the ids that made it, and a text that ends before it. A character
    that was cut at `max_tokens` is not in the text but in the state, and comes first when the row goes on.
    observed: per token, what was asked for: `"block00/R" -> [units]`, `"U" -> []`, fp32.
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: Literal["length", "separator", "stop"]
    state: GenerationState
    observed: tuple[dict[str, np.ndarray], ...] = ()


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
    stop: Sequence[str] = (),
    intervention: Intervention | None = None,
    observe: Sequence[str] = (),
    **sampling: Any,
) -> Generator[Piece, None, list[Completion]]:
    """Continue one or several prompts as one batch; yields text as it comes, returns the completions.

    Every row is what it would be alone: its random numbers come from its own seed and do not depend on its
    place in the batch. So equal prompts give equal rows under one `seed`; `seeds`, one per prompt, makes them
    differ. With `state`, each prompt is added to its row of the state (an empty one just goes on), and the
    random numbers go on too: `seed` and `seeds` are then not read. `sampling` takes the fields of `Sampling`.
    A row ends at the tokenizer's `stop_ids` (unless not `stop_at_separator`) and at the strings of `stop`.
    `intervention` acts while a text is written; the prompt is read without it. `observe` names quantities of
    the trace (R, psi) and U, the entropy of the prediction / ln V, for `Completion.observed`.
    A new prompt gets what the tokenizer itself puts around one, such as `<s>`; one that goes on does not.

    Raises: ConfigError for options out of range, counts that do not match, or an empty prompt where there is
    no separator to start from; CheckpointError for a state of another tokenizer; DataError for text outside
    the model's vocabulary.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    settings = Sampling(**sampling)
    seeds = [seed] * len(prompts) if seeds is None else seeds
    _refuse_options(tokenizer, prompts, max_tokens, seeds, state, stop)
    if state is not None:
        require_fit(state, model, tokenizer.vocab_size)
    steps = decode(
        model,
        _begin_state(model, tokenizer, prompts, seeds, state, settings.repetition_window),
        settings,
        vocab_size=tokenizer.vocab_size,
        stop_tokens=tokenizer.stop_ids if stop_at_separator else (),
        max_tokens=max_tokens,
        intervention=intervention,
        observe=observe,
    )
    # A state may end inside a character, whose other bytes are still to come.
    tails = state.tails if state is not None and state.tails else [Tail()] * len(prompts)
    writers = [_Writer(i, text, tokenizer, tails[i], stop) for i, text in enumerate(prompts)]
    for step in steps:
        yield from _hand_out(writers, step)
        if all(writer.finished for writer in writers):
            break
    yield from (piece for writer in writers if (piece := writer.close(step.state)))
    return [writer.completion() for writer in writers]


class _Writer:
    """One row's tokens so far and the decoder that turns them into whole characters.

    What may be the beginning of a stop string is kept back until it is one or not.
    """

    def __init__(self, row: int, prompt: str, tokenizer: Tokenizer, tail: Tail, stop: Sequence[str]):
        self.row, self.prompt, self.decoder = row, prompt, make_decoder(tokenizer, prompt, tail)
        self.stop, self.kept = stop, ""
        self.text, self.ids, self.logprobs = "", [], []
        self.observed: list[dict[str, np.ndarray]] = []
        self.finished: Literal["length", "separator", "stop"] | None = None
        self.state: GenerationState | None = None

    def add(self, token: int, logprob: float, state: GenerationState) -> Piece | None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.kept += self.decoder.push(token)
        at = _find_stop(self.kept, self.stop)
        if at is not None:
            self.kept = self.kept[:at]
            self.end("stop", state)
        return self._emit(len(self.kept) if self.finished else _count_settled(self.kept, self.stop))

    def end(self, why: Literal["length", "separator", "stop"], state: GenerationState) -> None:
        self.finished = why
        self.state = replace(state.row(self.row), tails=(self.decoder.tail,))

    def close(self, state: GenerationState) -> Piece | None:
        """The rest of the text of a row that ended; a character that was cut waits in the state."""
        if self.finished is None:
            self.end("length", state)
        # Behind a separator nothing can complete a character; a text that was cut may still go on.
        if self.finished == "separator":
            self.kept += self.decoder.finish()
        return self._emit(len(self.kept))

    def completion(self) -> Completion:
        assert self.finished and self.state  # `close` came before
        ids, logprobs = tuple(self.ids), tuple(self.logprobs)
        seen = tuple(self.observed)
        return Completion(self.prompt, self.text, ids, logprobs, self.finished, self.state, seen)

    def _emit(self, characters: int) -> Piece | None:
        new, self.kept = self.kept[:characters], self.kept[characters:]
        self.text += new
        return Piece(self.row, new) if new else None


def make_decoder(tokenizer: Tokenizer, prompt: str, tail: Tail = Tail()) -> StreamDecoder:  # noqa: B008  a tuple
    """Behind the prompt: the first token may begin with a space that is dropped at the start of a text."""
    if not prompt:
        return StreamDecoder(tokenizer, tail)
    return StreamDecoder.after(tokenizer, [*tail.ids, *tokenizer.encode_special(prompt)])


def _find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins; None where there is none."""
    return min((at for word in stop if (at := text.find(word)) >= 0), default=None)


def _count_settled(text: str, stop: Sequence[str]) -> int:
    """How many characters of a text cannot belong to a stop string any more."""
    longest = max(
        (n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])),
        default=0,
    )
    return len(text) - longest


def _hand_out(writers: list[_Writer], step: Step) -> Generator[Piece, None, None]:
    """Hand each row that was still going its token; a stop token ends a row and is not part of its text."""
    columns = (cast(list, column.tolist()) for column in (step.token, step.logprob, step.active))
    values = zip(writers, *columns)
    for writer, token, logprob, active in values:
        # The batch goes on until its last row has ended.
        if writer.finished:
            continue
        if not active:
            writer.end("separator", step.state)
            continue
        if step.observed:
            writer.observed.append({name: np.array(a[writer.row]) for name, a in step.observed.items()})
        if piece := writer.add(token, logprob, step.state):
            yield piece


def _begin_state(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: list[str],
    seeds: Sequence[int],
    state: GenerationState | None,
    window: int,
) -> GenerationState:
    """The state after reading the prompts, from the given state or from a blank one."""
    # What stands around a prompt, such as <s>, belongs to the beginning of a text alone.
    encode = tokenizer.encode_prompt if state is None else tokenizer.encode_special
    rows = [_check_ids(tokenizer, encode(text), model.args.vocab_size) for text in prompts]
    if state is not None:
        return resume(model, state, rows, window)
    rows = [row if len(row) else _opening_ids(tokenizer) for row in rows]
    return start(model, rows, seeds, window, tokenizer.digest)


def _refuse_options(
    tokenizer: Tokenizer | None,
    prompts: list[str],
    max_tokens: int,
    seeds: Sequence[int],
    state: GenerationState | None,
    stop: Sequence[str],
) -> None:
    # A string is a sequence of strings too, each of whose letters would end a text.
    if isinstance(stop, str) or not all(stop):
        raise ConfigError("stop is a list of strings of at least one character")
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
        raise CheckpointError(
            f"the state was written with tokenizer {state.tokenizer_digest[:12]}, this model uses "
            f"{tokenizer.digest[:12]}; their token ids mean different text"
        )


def _check_ids(tokenizer: Tokenizer, ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Token ids, all of which the model has an embedding for: MLX does not check bounds when it gathers."""
    ids = np.asarray(ids, dtype=np.int32)
    if len(ids) and ids.max() >= vocab_size:
        raise DataError(
            f"the prompt has token {ids.max()}, the model's vocabulary ends at {vocab_size - 1}; "
            f"{tokenizer.name} is not the tokenizer it was trained with"
        )
    return ids


def _opening_ids(tokenizer: Tokenizer) -> np.ndarray:
    """What an empty prompt starts from: the separator, after which a document begins."""
    if tokenizer.separator_id is None:
        raise ConfigError(
            f"an empty prompt starts from the separator, tokenizer {tokenizer.name!r} has none; give a prompt"
        )
    return np.array([tokenizer.separator_id], dtype=np.int32)
