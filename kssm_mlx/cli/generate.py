"""`kssm generate`: text from a run or a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kssm_mlx.errors import ConfigError, DataError
from kssm_mlx.terminal import printable


def temperature_of(text: str) -> float | str:
    """The value of --temperature: a number, or R."""
    try:
        return text if text == "R" else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor R") from None


def generate(
    model: Annotated[str, typer.Argument(help="A run folder or a model.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts, as one batch; - reads standard input.  [default: a new document]"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens per prompt, at most.")] = 256,
    temperature: Annotated[
        Any,
        typer.Option(
            parser=temperature_of,
            metavar="FLOAT|R",
            help="0: always the most likely token; R: 1.5 - 0.5 R, the model's coherence.",
        ),
    ] = "0.0",
    top_k: Annotated[int, typer.Option(help="Draw from the k most likely tokens; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the most likely tokens with this probability.")
    ] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw from tokens this likely relative to the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: recent tokens less likely.")] = 1.0,
    repetition_window: Annotated[int, typer.Option(help="How many tokens count as recent.")] = 64,
    seed: Annotated[list[int], typer.Option(help="One, or one per prompt.")] = [0],  # noqa: B006  typer reads it, and nobody changes it
    past_separator: Annotated[
        bool, typer.Option("--past-separator", help="Go on behind the end of a text.")
    ] = False,
    stop: Annotated[
        list[str], typer.Option(help="End a text before this string; more than one may be given.")
    ] = [],  # noqa: B006  as above
    stream: Annotated[bool, typer.Option(help="Show one text as it comes.")] = True,
    state_out: Annotated[Path | None, typer.Option(help="Save where the texts stand to this file.")] = None,
    state_in: Annotated[Path | None, typer.Option(help="Go on from this file.")] = None,
    verify: Annotated[bool, typer.Option(help="Refuse weights that fail their checks.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print ids, log-probabilities and text.")] = False,
) -> None:
    """Continue one or several texts.

    Several prompts run as one batch, in which each gives what it would give alone. A state file holds where a
    text stands and continues it exactly, with the weights that wrote it.
    """
    from kssm_mlx.cli.tables import warn_unverified
    from kssm_mlx.generation import follow, load_state, refuse_other_file, save_state, stack
    from kssm_mlx.generation import stream as run
    from kssm_mlx.runner.load import load

    if state_out:
        refuse_other_file(state_out)
    trained = load(model, verify=verify)
    warn_unverified(trained)
    if trained.tokenizer is None:
        raise ConfigError(f"{model}: {trained.notes['hint']}")
    state = load_state(state_in, trained.digest) if state_in else None
    prompts = _read_input(prompts) if prompts else [""] * (len(state) if state else 1)
    live = stream and len(prompts) == 1 and not as_json
    pieces = run(
        trained.model,
        trained.tokenizer,
        prompts,
        max_tokens=max_tokens,
        seeds=seed * len(prompts) if len(seed) == 1 else seed,
        state=state,
        stop_at_separator=not past_separator,
        stop=tuple(stop),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        repetition_window=repetition_window,
    )
    live_text = _Live(prompts[0])
    completions = follow(pieces, show=live_text.write if live else None)
    if live:
        live_text.begin()
    if state_out:
        save_state(state_out, stack([c.state for c in completions]), trained.digest)
    if as_json:
        _print_json(completions, trained)
    elif live:
        typer.echo()
    else:
        _print_texts(completions)


def _read_input(prompts: list[str]) -> list[str]:
    """The prompts, with standard input in place of "-", less the line break that ends it.

    Raises: ConfigError for two of them; DataError for bytes that are not UTF-8.
    """
    if prompts.count("-") > 1:
        raise ConfigError("standard input can be one prompt, and - is given twice; give the texts themselves")
    if "-" not in prompts:
        return prompts
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as e:
        raise DataError(f"standard input is not UTF-8: {e.reason} at byte {e.start}; convert it") from None
    return [text.removesuffix("\n") if prompt == "-" else prompt for prompt in prompts]


class _Live:
    """A text as it comes, its prompt before the first piece: what cannot be begun shows nothing."""

    def __init__(self, prompt: str):
        self.prompt, self.begun = prompt, False

    def begin(self) -> None:
        if not self.begun:
            typer.echo(printable(self.prompt), nl=False)
            self.begun = True

    def write(self, piece: Any) -> None:
        self.begin()
        sys.stdout.write(printable(piece.text))
        sys.stdout.flush()


def _print_texts(completions: list[Any]) -> None:
    for number, completion in enumerate(completions, start=1):
        heading = f"[{number}] " if len(completions) > 1 else ""
        typer.echo(f"{heading}{printable(completion.prompt + completion.text)}")


def _print_json(completions: list[Any], trained: Any) -> None:
    import json

    fields = ("prompt", "text", "ids", "logprobs", "finished")
    rows = [{name: getattr(completion, name) for name in fields} for completion in completions]
    typer.echo(json.dumps({"model": trained.source, "digest": trained.digest, "completions": rows}, indent=2))
