"""`kssm generate`: text from a run or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kssm_mlx.cli.live.text import STDIN, decode_utf8
from kssm_mlx.errors import ConfigError, one_line

LONGEST_TITLE = 40  # characters of a prompt


def temperature_of(text: str) -> float | Literal["R"]:
    """The value of --temperature: a number, or R."""
    try:
        return "R" if text == "R" else float(text)
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
    seed: Annotated[
        list[int],
        typer.Option(help="One, with which every prompt gets the same random numbers, or one per prompt."),
    ] = [0],  # noqa: B006  typer reads it, and nobody changes it
    past_separator: Annotated[
        bool, typer.Option("--past-separator", help="Go on behind the end of a text.")
    ] = False,
    stop: Annotated[
        list[str], typer.Option(help="End a text before this string; more than one may be given.")
    ] = [],  # noqa: B006  as above
    prompt_file: Annotated[Path | None, typer.Option(help="A file whose text is one more prompt.")] = None,
    stream: Annotated[bool, typer.Option(help="Show one text as it comes; with --json all of them.")] = True,
    state_out: Annotated[Path | None, typer.Option(help="Save where the texts stand to this file.")] = None,
    state_in: Annotated[
        Path | None,
        typer.Option(help="Go on from this file; or begin with the learned state that is in it."),
    ] = None,
    verify: Annotated[bool, typer.Option(help="Refuse weights that fail their checks.")] = True,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="JSON lines: pieces as they come, then ids, log-probabilities and text of each."
        ),
    ] = False,
    hold: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE=VALUE", help="Hold this inside the model while it writes, such as R=0.5."),
    ] = None,
    carried: Annotated[
        bool, typer.Option("--carried", help="With --hold: the carried state too, not only what is read.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Write what the model was in at each token here, a picture beside it.",
        ),
    ] = None,
    trace_values: Annotated[
        str, typer.Option(metavar="R,psi,omega,U", help="What is traced; the first one colours the picture.")
    ] = "R,U",
    trace_units: Annotated[
        bool, typer.Option("--trace-units", help="Trace every unit, not only the means of blocks.")
    ] = False,
) -> None:
    """Continue one or several texts.

    Several prompts run as one batch, in which each gives what it would give alone. A state file holds where a
    text stands and continues it exactly, with the weights that wrote it; one of kssm export --format state
    holds what texts begin with. The prompt is read before --hold begins to act.
    """
    from kssm_mlx.cli.live.text import Show, print_json, print_texts
    from kssm_mlx.cli.tables import warn_unverified
    from kssm_mlx.generation import follow, load_state, refuse_other_file, save_state, stack
    from kssm_mlx.generation import stream as run
    from kssm_mlx.generation.initial_state import is_initial_state
    from kssm_mlx.generation.trace import list_observed, require_quantities, trace_rows
    from kssm_mlx.runner.load import load

    if state_out:
        refuse_other_file(state_out)
    observed = _parse_trace_options(trace, trace_values)
    given = read_prompts(prompts or [], prompt_file)
    intervention = parse_hold(hold or [], carried)
    trained = load(model, verify=verify)
    warn_unverified(trained)
    if trained.tokenizer is None:
        raise ConfigError(f"{model}: {trained.notes['hint']}")
    if observed:
        require_quantities(trained.model, observed)
    if state_in and is_initial_state(state_in):
        from kssm_mlx.runner.load import begin_with_state

        trained, state_in = begin_with_state(trained, state_in), None
    state = load_state(state_in, trained.digest) if state_in else None
    prompts = given or [""] * (len(state) if state else 1)
    live = stream and (as_json or len(prompts) == 1)
    pieces = run(
        trained.model,
        trained.tokenizer,
        prompts,
        max_tokens=max_tokens,
        seeds=seed * len(prompts) if len(seed) == 1 else seed,
        state=state,
        stop_at_separator=not past_separator,
        stop=tuple(stop),
        intervention=intervention,
        observe=list_observed(observed),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        repetition_window=repetition_window,
    )
    show = Show(prompts[0], as_json)
    completions = follow(pieces, show=show.write if live else None)
    if state_out:
        save_state(state_out, stack([c.state for c in completions]), trained.digest)
    if as_json:
        print_json(completions, trained)
    elif live:
        show.end()
    else:
        print_texts(completions)
    if trace:
        rows = [
            list(trace_rows(completion, trained.tokenizer, row, names=observed, units=trace_units))
            for row, completion in enumerate(completions)
        ]
        _write_trace(trace, rows, observed, _title_pictures(Path(model).name, prompts), intervention)


def read_prompts(prompts: list[str], file: Path | None = None) -> list[str]:
    """The prompts, with standard input in place of "-" and the file's text behind them, each of these two
    less the line break that ends it.

    Raises: ConfigError for two of "-" and for no such file; DataError for bytes that are not UTF-8.
    """
    if prompts.count("-") > 1:
        raise ConfigError("standard input can be one prompt, and - is given twice; give the texts themselves")
    given = {prompt: prompt for prompt in prompts}
    if "-" in given:
        given["-"] = decode_utf8(typer.get_binary_stream("stdin").read(), STDIN).removesuffix("\n")
    read = [given[prompt] for prompt in prompts]
    if file is None:
        return read
    if not file.is_file():
        raise ConfigError(f"no file {file}; --prompt-file takes a text file, - as a prompt standard input")
    return [*read, decode_utf8(file.read_bytes(), str(file)).removesuffix("\n")]


def parse_hold(texts: list[str], carried: bool) -> Any:
    """["R=0.5"] -> the intervention that holds it, None without any. Raises: ConfigError."""
    if not texts:
        return None
    from kssm_mlx.experiments.intervene import parse_holds
    from kssm_mlx.models.base import Intervention

    holds = parse_holds(texts, where="state" if carried else "readout")
    if len(holds) > len(texts):
        raise ConfigError(f"a text is written under one value, got {', '.join(texts)}; ask once for each")
    return Intervention(tuple(clamp for hold in holds for clamp in hold.intervention.clamps))


def _parse_trace_options(trace: Path | None, values: str) -> tuple[str, ...]:
    """What to observe; checked before anything is written. Raises: ConfigError."""
    if trace is None:
        return ()
    from kssm_mlx.files import require_writable

    if trace.suffix != ".jsonl":  # the pictures' own names end in .png
        raise ConfigError(f"--trace takes FILE.jsonl, got {str(trace)!r}")
    require_writable(trace)
    return tuple(name.strip() for name in values.split(",") if name.strip())


def _title_pictures(model: str, prompts: list[str]) -> list[str]:
    """Of several texts each has its prompt in its title."""
    if len(prompts) == 1:
        return [model]
    shown = [one_line(prompt, LONGEST_TITLE) for prompt in prompts]
    return [f"{model}, " + (repr(text) if text else f"text {i}") for i, text in enumerate(shown, start=1)]


def _write_trace(
    path: Path, texts: list[list[dict[str, Any]]], names: tuple[str, ...], titles: list[str], hold: Any
) -> None:
    """The rows of every text, and one picture of each beside them; says what it wrote."""
    import json

    from kssm_mlx import files
    from kssm_mlx.reports.written import plot_written

    clamps = hold.clamps if hold else ()
    held = {c.site: c.value for c in clamps if c.block is None and c.units is None}
    files.replace(path, "".join(json.dumps(row) + "\n" for rows in texts for row in rows))
    written = [path]
    for row, (rows, title) in enumerate(zip(texts, titles, strict=True)):
        if rows:
            picture = path.with_name(f"{path.stem}{f'-{row + 1}' if row else ''}.png")
            written.append(plot_written(rows, names, picture, title, held))
    for file in written:
        typer.echo(f"kssm: wrote {file}", err=True)
