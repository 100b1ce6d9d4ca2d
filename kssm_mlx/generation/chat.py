"""A conversation: its turns, the text that a template makes of them, and the state that has read that text.

A model that ships a chat template is asked through it; any other goes on writing where a line ends. Only
what is new is read: the state of a turn goes on from the one before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx.errors import CheckpointError, ConfigError, DataError
from kssm_mlx.generation.state import WORDS, GenerationState, Words, load_state, read_note, save_state
from kssm_mlx.generation.text import Completion, Piece, follow, stream
from kssm_mlx.models.base import Trained
from kssm_mlx.parsing import parse_json
from kssm_mlx.weights.side_files import read_chat_template

Message = dict[str, str]
Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class Conversation:
    """messages: every turn, {"role", "content"}; read: the text behind which `state` stands, in the words of
    the template; state: None before the first answer.
    """

    messages: tuple[Message, ...] = ()
    read: str = ""
    state: GenerationState | None = None

    def reseed(self, seed: int) -> Conversation:
        """The same, with other random numbers from here on."""
        if self.state is None:
            return self
        return replace(self, state=replace(self.state, keys=mx.random.key(seed)[None]))


def make_template(trained: Trained) -> Render | None:
    """The chat template beside the weights as a function of messages; None where there is none.

    Raises: ConfigError for one that is no template.
    """
    folder = trained.notes.get("path")
    found = read_chat_template(Path(folder)) if folder else None
    return None if found is None else compile_template(*found)


def compile_template(source: str, tokens: dict[str, str]) -> Render:
    """A Jinja template as Hugging Face writes them; the rendered text ends where the answer begins.

    tokens: what it may name, such as bos_token.
    Raises: ConfigError for a template that cannot be read; the function, DataError for one that refuses.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
    try:
        template = environment.from_string(source)
    except TemplateError as e:
        raise ConfigError(f"the chat template cannot be read: {e}; mend the file or take it away") from None

    def render(messages: Sequence[Message]) -> str:
        try:
            return template.render(messages=list(messages), add_generation_prompt=True, **tokens)
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as e:
            raise DataError(f"the chat template refuses these turns: {e}") from None

    return render


def answer(
    trained: Trained,
    talk: Conversation,
    text: str,
    render: Render | None = None,
    *,
    show: Callable[[Piece], None] | None = None,
    **options: Any,
) -> Conversation:
    """The conversation after one more turn. options: of `stream`; `seed` counts before the first answer.

    Raises: as `stream`; the conversation given is then as it was.
    """
    messages = (*talk.messages, {"role": "user", "content": text})
    whole = render(messages) if render else talk.read + _line(talk.read, text)
    state, prompt = _find_unread(talk, whole)
    pieces = stream(trained.model, trained.tokenizer, [prompt], state=state, **options)
    (done,) = follow(pieces, show)
    said = {"role": "assistant", "content": done.text}
    read = whole + done.text + _end(trained.tokenizer, done)
    return Conversation((*messages, said), read if render else _find_line_end(done), done.state)


def _line(read: str, text: str) -> str:
    """A turn without a template: a line of its own."""
    before = "\n" if read and not read.endswith("\n") else ""
    return f"{before}{text}\n"


def _find_line_end(done: Completion) -> str:
    """All that matters of a text without a template: whether a line ended. Behind a separator all is new."""
    return "" if done.finished == "separator" else (done.prompt + done.text)[-1:]


def _find_unread(talk: Conversation, whole: str) -> tuple[GenerationState | None, str]:
    """From where to go on, and what has to be read there; from nothing, where the text behind is another.

    A template may leave out of earlier turns what was said in them.
    """
    if talk.state is not None and whole.startswith(talk.read):
        return talk.state, whole.removeprefix(talk.read)
    return None, whole


def _end(tokenizer: Any, done: Completion) -> str:
    """The token that ended an answer: the state reads it next, so no prompt repeats it."""
    if done.finished != "separator":
        return ""
    return tokenizer.decode(np.array(done.state.pending).tolist())


def save_conversation(path: str | Path, talk: Conversation, weights_digest: str) -> None:
    """A state file, from which `kssm generate --state-in` goes on too, with the turns noted in it.

    Raises: ConfigError where nothing was said yet; CheckpointError where it cannot be written.
    """
    if talk.state is None:
        raise ConfigError("nothing was said yet, so there is nothing to save")
    note = json.dumps({"messages": talk.messages, "read": talk.read})
    save_state(path, talk.state, weights_digest, note=note)


def load_conversation(path: str | Path, weights_digest: str, words: Words = WORDS) -> Conversation:
    """What `save_conversation` wrote, or a state that `kssm generate` wrote, whose turns are unknown.

    Raises: CheckpointError as `load_state`, and for a state of several texts.
    """
    state = load_state(path, weights_digest, words)
    if len(state) != 1:
        raise CheckpointError(f"{path} holds {len(state)} texts; a conversation goes on from one")
    note = read_note(path)
    if not note:
        return Conversation(state=state)
    try:
        told = parse_json(note)
        messages = tuple({"role": str(m["role"]), "content": str(m["content"])} for m in told["messages"])
        return Conversation(messages, str(told["read"]), state)
    except (ValueError, TypeError, LookupError) as e:
        raise CheckpointError(
            f"{path} has turns that are none ({type(e).__name__}); kssm generate --state-in goes on from it"
        ) from None
