"""`kssm watch`: runs as they go, by their files alone, here or on another machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from kssm_mlx.errors import ConfigError, KssmError

BARS = "▁▂▃▄▅▆▇█"
NEAR, FAR = 2.0, 10.0  # seconds between two looks, here and over a network
SAMPLE, WARNINGS, DETAILED = 400, 6, 2  # characters, lines, runs that are shown in full
Seen = tuple[list[Any], str]  # runs at one moment, and a line above them
COLOURS = {"running": "green", "begins": "cyan", "done": "bold", "stopped": "yellow"}


def watch(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN|DIR|HOST:PATH...", help="Runs, or folders with runs in them.")
    ],
    once: Annotated[
        bool, typer.Option("--once", help="Show how things stand now, in full or as a table, and end.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(min=0.2, help="Seconds between two looks.  [default: 2, of another machine 10]"),
    ] = None,
) -> None:
    """Watch one or many runs, here or through ssh; Ctrl-C ends it, and the runs go on.

    Only files are read: a run may be begun, killed or resumed meanwhile. One or two runs are shown in full,
    more of them in a line each. Into a pipe or a file goes a line for every change, until no run is going on.
    HOST:PATH is fetched with rsync (recipes, metrics, samples and checks).
    """
    from kssm_mlx.cli.tables import console, show
    from kssm_mlx.runs.glance import Watched
    from kssm_mlx.runs.remote import parse_place

    places = [parse_place(run) for run in runs]
    known: dict[Path, Any] = {}

    def look(wait: bool) -> Seen:
        found = {place: _find_runs(place, wait) for place in places}
        absent = ", ".join(str(place) for place in places if not found[place])
        glances = [known.setdefault(run, Watched(run)).look() for place in places for run in found[place]]
        return glances, f"waiting for a run in {absent}" if absent else ""

    pause = every or (FAR if any(place.host for place in places) else NEAR)
    screen = console()
    if once:
        show(screen, frame(look(False)[0], screen.width))
    elif screen.is_terminal:
        _show_until_interrupted(screen, look, pause)
    else:
        _tell_until_ended(look, pause)


def _find_runs(place: Any, wait: bool) -> list[Path]:
    """The run folders of a place, as they are on this machine.

    wait: one without a run, or that is not there, has none yet.
    Raises: ConfigError, NoFolder for such a place otherwise; CheckpointError for one that cannot be reached.
    """
    from kssm_mlx.runs.glance import find_runs
    from kssm_mlx.runs.remote import NoFolder, mirror

    try:
        found = find_runs(mirror(place) if place.host else Path(place.path))
    except NoFolder:
        if not wait:
            raise
        found = []
    if not found and not wait:
        raise ConfigError(f"no run in {place}; a run is a folder with a recipe.json, which kssm train makes")
    return found


def _show_until_interrupted(screen: Any, look: Callable[[bool], Seen], pause: float) -> None:
    from rich.live import Live

    seen, note = look(True)
    with Live(frame(seen, screen.width, note), console=screen, screen=True, auto_refresh=False) as live:
        while True:
            live.refresh()
            time.sleep(pause)
            seen, note = look_again(partial(look, True), seen)
            live.update(frame(seen, screen.width, note))


def _tell_until_ended(look: Callable[[bool], Seen], pause: float) -> None:
    """What changes, line by line, until every run is done or was stopped."""
    from kssm_mlx.terminal import printable

    told: set[str] = set()
    seen, note = look(True)
    while True:
        for key, line in changes(seen, note):
            if key not in told:
                typer.echo(printable(line))  # which flushes: a pipe has it at once
                told.add(key)
        if seen and not note and not any(glance.held for glance in seen):  # done, it may yet be checked
            return
        time.sleep(pause)
        seen, note = look_again(partial(look, True), seen)


def changes(seen: Sequence[Any], note: str) -> Iterable[tuple[str, str]]:
    """What there is to say at one moment, each behind what makes it news: no speed and no time left."""
    from kssm_mlx.runs.layout import distinct_names

    if note:
        yield note, note
    for glance, name in zip(seen, distinct_names([each.folder for each in seen]), strict=True):
        stands = f"{name}  {glance.status}  step {_progress(glance)}"
        key = f"{glance.folder} {glance.status} {glance.step} {glance.evaluation.get('step')}"
        yield key, f"{stands}{_format_time_left(glance)}  {_numbers(glance)}"
        for said in (glance.event, *glance.warnings):
            if said:
                yield f"{glance.folder} {said}", f"{name}  {said}"


def look_again(look: Callable[[], Seen], before: list[Any]) -> Seen:
    """How things stand; what was seen before, and why, where a network or a folder is away for a while."""
    try:
        return look()
    except (KssmError, OSError) as e:
        return before, f"not newer: {e}"


def frame(seen: Sequence[Any], width: int, note: str = "") -> Any:
    """Everything as it stands, for a screen of so many columns. note: what is awaited, or why it is old."""
    from rich.console import Group
    from rich.text import Text

    from kssm_mlx.terminal import printable

    told = [Text(printable(note), style="yellow")] if note else []
    if len(seen) <= DETAILED:
        return Group(*told, *(part for glance in seen for part in describe(glance, width)))
    return Group(*told, _overview(seen))


def describe(glance: Any, width: int) -> Iterable[Any]:
    """One run in full."""
    from rich.text import Text

    from kssm_mlx.terminal import printable

    heading = Text.assemble(
        (printable(glance.folder.name), "bold"), "  ", (glance.status, COLOURS[glance.status]), "  "
    )
    yield heading.append(
        f"step {_progress(glance)}{_format_time_left(glance)}, last sign {_format_age(glance.age)} ago"
    )
    yield Text(f"  {sparkline(glance.losses, min(width - 4, 76))}", style="cyan", no_wrap=True)
    yield Text(f"  {_numbers(glance)}")
    if glance.ladder:
        yield Text(f"  {_ladder(glance)}")
    if glance.event:
        yield Text(f"  {printable(glance.event)}", style="dim")
    for warning in glance.warnings[:WARNINGS]:
        yield Text(f"  {printable(warning)}", style="yellow")
    if (more := len(glance.warnings) - WARNINGS) > 0:
        yield Text(f"  and {more} more: kssm report {printable(str(glance.folder))}", style="yellow")
    if glance.sample:
        text = f"{glance.sample.get('prompt') or ''}{glance.sample['text']}"
        cut = "..." if len(text) > SAMPLE else ""
        yield Text(f"  sample at step {glance.sample['step']}:", style="dim")
        yield Text(f"{printable(text[:SAMPLE])}{cut}")
    yield Text("")


def _overview(seen: Sequence[Any]) -> Any:
    """One line a run; a column that is empty in all of them is left out."""
    from rich.table import Table
    from rich.text import Text

    from kssm_mlx.runs.layout import distinct_names
    from kssm_mlx.terminal import printable

    header = ("run", "", "step", "loss", "below", "R", "U", "tok/s", "left", "seen", "!")
    rows = [
        (
            printable(name),
            glance.status,
            _progress(glance),
            _number(glance.loss),
            glance.rung,
            _number(glance.mean("R")),
            _number(glance.mean("U")),
            _number(glance.train.get("tokens_per_second"), ",.0f"),
            "" if glance.status == "done" else _format_age(glance.seconds_left),
            _format_age(glance.age),
            str(len(glance.warnings) or ""),
        )
        for name, glance in zip(distinct_names([g.folder for g in seen]), seen, strict=True)
    ]
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    drawn = Table(*(header[i] for i in kept), box=None, padding=(0, 2, 0, 0))
    for column in drawn.columns[1:]:
        column.no_wrap = True
    for row in rows:
        drawn.add_row(*(Text(row[i], style=COLOURS.get(row[i], "")) for i in kept))
    return drawn


def sparkline(values: Sequence[float], width: int) -> str:
    """The values, each the mean of its share, as bars from the least to the largest of them."""
    if not values:
        return ""
    count = min(len(values), max(1, width))
    edges = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = high - low or 1.0
    return "".join(BARS[min(7, int((value - low) / span * 8))] for value in means)


def _numbers(glance: Any) -> str:
    train, evaluation = glance.train, glance.evaluation
    parts = [
        ("loss", _number(train.get("loss"))),
        ("validation", _number(evaluation.get("nats_per_token"))),
        ("R", _number(glance.mean("R"))),
        ("U", _number(glance.mean("U"))),
        ("tone", str(train.get("tone", ""))),
        ("action", str(train.get("action", ""))),
        ("tokens/s", _number(train.get("tokens_per_second"), ",.0f")),
    ]
    return "  ".join(f"{name} {value}" for name, value in parts if value) or "no step yet"


def _ladder(glance: Any) -> str:
    """What counting predicts, with the place of the loss among it."""
    rungs = [(nats, f"{name} {nats:.3f}") for name, nats in glance.ladder.items()]
    if glance.loss is not None:
        rungs.append((glance.loss, f"[this run {glance.loss:.3f}]"))
    told = [text.replace(" ", "\u00a0") for _, text in sorted(rungs, reverse=True)]
    return "nats/token: " + " > ".join(told)


def _progress(glance: Any) -> str:
    return f"{glance.step}/{glance.steps or '?'}"


def _format_time_left(glance: Any) -> str:
    left = glance.seconds_left
    return "" if left is None or glance.status == "done" else f", {_format_age(left)} left at this speed"


def _number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None or not math.isfinite(value) else format(value, form)


def _format_age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}min" if seconds < 5400 else f"{seconds / 3600:.1f}h"
