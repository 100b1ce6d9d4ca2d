"""`kssm chat`: turns with a model, on a terminal or line by line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kssm_mlx.cli.live.text import STDIN, decode_utf8
from kssm_mlx.errors import ConfigError, KssmError, nearest
from kssm_mlx.terminal import printable

HELP = """\
/reset        forget everything that was said
/save FILE    write where the conversation stands; /load FILE goes on from there
/seed N       other random numbers from here on
/temp X       the temperature: 0 always the most likely token, or a number, or R
/help         this list
/quit         end (as Ctrl-D does); with --state the conversation is kept
A line that ends in \\ goes on in the next; \"\"\" before and after a text keeps its lines together.
Ctrl-C stops an answer, which then counts as not given. A line that begins with // begins with one /."""
COMMANDS = ("reset", "save", "load", "seed", "temp", "help", "quit")
HISTORY, LONGEST = "chat-history", 1000  # lines
Read = Callable[[str], str]


def chat(
    model: Annotated[str, typer.Argument(help="A run folder or a model.")],
    state: Annotated[
        Path | None, typer.Option(help="Go on from this file, if it is there, and save into it at the end.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer, at most.")] = 256,
    temperature: Annotated[str, typer.Option("--temperature", "--temp", metavar="FLOAT|R")] = "0.8",
    top_p: Annotated[
        float, typer.Option(help="Draw from the most likely tokens with this probability.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End an answer before this string; several may be given.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Refuse weights that fail their checks.")] = True,
) -> None:
    """Talk with a model; what was said stays in its state.

    A model with a chat template is asked through it; any other goes on where your line ends. /help lists the
    commands. From a pipe each line is a turn, and the first one that cannot be answered ends it.
    """
    from kssm_mlx.cli.generate import temperature_of
    from kssm_mlx.cli.tables import warn_unverified
    from kssm_mlx.generation import refuse_other_file
    from kssm_mlx.generation.chat import make_template
    from kssm_mlx.runner.load import load

    settings = {"temperature": temperature_of(temperature), "top_p": top_p, "seed": seed}
    if state:
        refuse_other_file(state)
    trained = load(model, verify=verify)
    warn_unverified(trained)
    if trained.tokenizer is None:
        raise ConfigError(f"{model}: {trained.notes['hint']}")
    session = Session(
        trained, make_template(trained), {**settings, "max_tokens": max_tokens, "stop": tuple(stop or ())}
    )
    if state and state.exists():
        session.load(str(state), "--state", f"without --state {state}")
    try:
        talk(session, interactive=sys.stdin.isatty())
    finally:
        if state and session.talk.state is not None:
            session.save(str(state))


class Quit(Exception):
    """The user has said enough."""


class Dropped(Exception):
    """Ctrl-C at the prompt: what was typed so far does not count. In a pipe it ends the command."""


@dataclass
class Session:
    """settings: of `stream`; talk: what was said, replaced by every turn."""

    trained: Any
    render: Any
    settings: dict[str, Any]

    def __post_init__(self):
        from kssm_mlx.generation.chat import Conversation

        self.talk = Conversation()

    def turn(self, text: str) -> None:
        """One line of the user: a command, or something to answer.

        Raises: Quit; KssmError, after which everything is as it was.
        """
        if text.startswith("/") and not text.startswith("//"):
            self.command(*text[1:].split(maxsplit=1))
        elif text.strip():
            self.answer(text.removeprefix("/") if text.startswith("//") else text)

    def answer(self, text: str) -> None:
        from kssm_mlx.cli.live.text import Show
        from kssm_mlx.generation.chat import answer

        show = Show()
        self.talk = answer(self.trained, self.talk, text, self.render, show=show.write, **self.settings)
        show.end()

    def command(self, name: str = "", value: str = "") -> None:
        if name not in COMMANDS:
            hint = nearest(name, COMMANDS)
            raise ConfigError(f"no command /{name}{hint}; /help lists them, // begins a text with /")
        if (name in ("save", "load", "seed", "temp")) != bool(value.strip()):
            raise ConfigError(f"/{name} {'takes nothing' if value else 'needs a value'}; see /help")
        getattr(self, name)(*([value.strip()] if value else []))

    def reset(self) -> None:
        self.talk = type(self.talk)()

    def save(self, path: str) -> None:
        from kssm_mlx.generation import refuse_other_file
        from kssm_mlx.generation.chat import save_conversation

        file = Path(path).expanduser()
        refuse_other_file(file)
        save_conversation(file, self.talk, self.trained.digest)

    def load(self, path: str, writer: str = "/save", afresh: str = "with /reset") -> None:
        """writer, afresh: what an error names as writing such a file, and as beginning without it."""
        from kssm_mlx.generation.chat import load_conversation
        from kssm_mlx.generation.state import Words

        self.talk = load_conversation(Path(path).expanduser(), self.trained.digest, Words(writer, afresh))

    def seed(self, text: str) -> None:
        if not text.isdecimal():
            raise ConfigError(f"/seed takes a whole number from 0 on, got {text!r}")
        self.settings = {**self.settings, "seed": int(text)}
        self.talk = self.talk.reseed(int(text))

    def temp(self, text: str) -> None:
        from kssm_mlx.cli.generate import temperature_of
        from kssm_mlx.generation import Sampling

        try:
            temperature = temperature_of(text)
        except typer.BadParameter as e:
            raise ConfigError(f"/temp: {e.message}") from None
        Sampling(temperature=temperature)
        self.settings = {**self.settings, "temperature": temperature}

    def help(self) -> None:
        typer.echo(HELP)

    def quit(self) -> None:
        raise Quit


def talk(session: Session, *, interactive: bool) -> None:
    """Turns until the input ends; on a terminal an error is told and the talk goes on."""
    read = _read_typed_lines() if interactive else _make_piped_reader()
    with suppress(Quit):
        for text in turns(read):
            try:
                session.turn(text)
            except KssmError as e:
                if not interactive:
                    raise
                typer.echo(f"kssm: {printable(str(e))}", err=True)
            except KeyboardInterrupt:
                if not interactive:
                    raise
                typer.echo("\nstopped; this turn does not count")


def turns(read: Read) -> Iterator[str]:
    """Turns of one line or several, until `read` raises EOFError; what was begun then is a turn too."""
    ended = False
    while not ended:
        lines: list[str] = []
        try:
            lines.append(read("> "))
            block = lines[0].strip().startswith('"""')
            while _goes_on(lines, block):
                lines.append(read(". "))
        except EOFError:
            ended = True
        except Dropped:
            typer.echo()
            continue
        if lines:
            yield _join_lines(lines)


def _goes_on(lines: list[str], block: bool) -> bool:
    if block:
        return '"""' not in "\n".join(lines).strip().removeprefix('"""')
    return lines[-1].endswith("\\")


def _join_lines(lines: list[str]) -> str:
    text = "\n".join(lines).strip("\n")
    if text.strip().startswith('"""'):
        return text.strip().removeprefix('"""').removesuffix('"""').strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\")


def _make_piped_reader() -> Read:
    """Lines of standard input, each without its line break.

    Raises: DataError for bytes that are not UTF-8, with their place in the whole input.
    """
    stream, done = typer.get_binary_stream("stdin"), 0

    def read(prompt: str) -> str:
        nonlocal done
        line = stream.readline()
        if not line:
            raise EOFError
        text = decode_utf8(line, STDIN, done)
        done += len(line)
        return text.replace("\r\n", "\n").removesuffix("\n")

    return read


def _read_typed_lines() -> Read:
    """Lines of a person, with editing and those of earlier sessions, where this Python has readline."""
    with suppress(ImportError):
        import atexit
        import readline

        path = Path(typer.get_app_dir("kssm-mlx")) / HISTORY
        with suppress(OSError):  # the first time, or a home that cannot be written to
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.read_history_file(path)
        readline.set_history_length(LONGEST)
        atexit.register(_keep_history, readline, path)
    typer.echo("/help lists the commands, Ctrl-D ends")
    return _ask


def _ask(prompt: str) -> str:
    try:
        return input(prompt)
    except KeyboardInterrupt:
        raise Dropped from None


def _keep_history(readline: Any, path: Path) -> None:
    with suppress(OSError):
        readline.write_history_file(path)
