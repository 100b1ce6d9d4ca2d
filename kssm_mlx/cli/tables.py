"""The tables that commands print: verdicts in colour and in words, numbers with their units."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kssm_mlx.reports.card import describe_task_scores
from kssm_mlx.terminal import printable

WIDTH = 120  # of tables in files and logs, where rich would take 80

CHECKS = ("check", "verdict", "got", "expected", "s")
COLOURS = {"pass": "green", "fail": "bold red", "warn": "yellow", "waived": "yellow", "not measurable": "dim"}


class SafeConsole(Console):
    """Shows strings with their control characters spelled out: many come from files of others."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)


def console(quiet: bool = False) -> Console:
    """Where tables go: as wide as the terminal or as COLUMNS says, else as `WIDTH`; nowhere if quiet."""
    drawn = SafeConsole(highlight=False, quiet=quiet)
    # rich takes 80 columns where it knows nothing, and would break numbers in a log.
    if drawn.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return drawn
    return SafeConsole(highlight=False, quiet=quiet, width=WIDTH)


def show(screen: Console, drawn: Table) -> None:
    """Print a table; into a file or a pipe without the blanks that fill its lines."""
    if screen.is_terminal:
        screen.print(drawn)
        return
    # rich fills every line to the width of the table, which a diff and a mail show.
    with screen.capture() as captured:
        screen.print(drawn)
    lines = "\n".join(line.rstrip() for line in captured.get().splitlines())
    Console.print(screen, lines, markup=False, soft_wrap=True)  # drawn already, with whatever marks it has


def checks_table(checks: Iterable[Mapping[str, Any]], title: str) -> Table:
    """One row per check, as `Check.to_json` gives it; a waived one shows its reason."""
    return table(CHECKS, map(_check_row, checks), title)


def layers_table(layers: Mapping[str, Iterable[Mapping[str, Any]]], title: str) -> Table:
    """`checks_table` in sections, each under its heading."""
    drawn = table(CHECKS, (), title)
    for heading, checks in layers.items():
        drawn.add_section()
        drawn.add_row(Text(heading, style="bold"))
        for row in map(_check_row, checks):
            drawn.add_row(*map(_cell, row))
    return drawn


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], title: str) -> Table:
    """A left-aligned table; cells that are strings are shown literally, brackets and all."""
    drawn = Table(
        *header, title=escape(printable(title)), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    for row in rows:
        drawn.add_row(*map(_cell, row))
    return drawn


def _cell(value: Any) -> Any:
    return escape(printable(value)) if isinstance(value, str) else value


def evaluation_rows(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of `kssm eval` in reading order, with units and one standard error."""
    n = numbers
    rows = [
        ("tokens scored", f"{n['tokens']:,}"),
        ("loss, nats/token", f"{n['nats_per_token']:.4f} ± {n['se']:.4f}"),
        ("perplexity", f"{n['perplexity']:.3f} ± {n['perplexity_se']:.3f}"),
        ("bits/byte", f"{n['bits_per_byte']:.4f}"),
        ("context gain, nats", f"{n['context_gain']:.3f} ± {n['context_gain_se']:.3f}"),
        *describe_task_scores(n),
    ]
    rows += [
        (f"{length:,} tokens, second half", f"accuracy {at['accuracy']:.3f}, spread {at['spread']:.3g}")
        for length, at in n.get("lengths", {}).items()
    ]
    return rows + [(f"{rung}, nats/token", f"{nats:.4f}") for rung, nats in n["ladder"].items()]


def show_suite(screen: Console, checks: Sequence[Mapping[str, Any]], title: str) -> None:
    """One line for a suite; failures, warnings and waivers in full."""
    screen.print(f"{title}: {summary(checks)}", soft_wrap=True, markup=False)
    for c in checks:
        if c["verdict"] in ("fail", "warn", "waived"):
            line = f"  {c['verdict']} {c['id']} {c['title']}: {_format_reason(c)}; expected {c['expected']}"
            screen.print(line, soft_wrap=True, markup=False, style=COLOURS[c["verdict"]])
            # Who waived it knows what could be done.
            if c["fix"] and c["verdict"] != "waived":
                screen.print(f"    {c['fix']}", soft_wrap=True, markup=False)


def show_fixes(console: Console, checks: Iterable[Mapping[str, Any]]) -> None:
    """What to do about each check that failed or warns."""
    for c in checks:
        if c["fix"] and c["verdict"] in ("fail", "warn"):
            console.print(f"{c['id']}: {c['fix']}", markup=False, soft_wrap=True, highlight=False)


def summary(checks: Sequence[Mapping[str, Any]]) -> str:
    """How many checks, how long, and how they came out."""
    count = Counter(c["verdict"] for c in checks)
    verdicts = ", ".join(f"{count[word]} {word}" for word in COLOURS if count[word])
    checks_in = f"{len(checks)} check{'s' * (len(checks) != 1)} in"
    return f"{checks_in} {sum(c['seconds'] for c in checks):.1f} s: {verdicts}"


def _check_row(c: Mapping[str, Any]) -> tuple[Any, ...]:
    seconds = f"{c['seconds']:.1f}" if c["seconds"] else ""
    verdict = _verdict(c["verdict"])
    if c.get("evidence"):  # which older runs do not state
        verdict.append(f"\n{c['evidence']}", style="dim")
    return f"{c['id']} {c['title']}", verdict, _format_reason(c), c["expected"], seconds


def warn_unverified(trained: Any) -> None:
    """One line per finding on stderr about weights that were opened with --no-verify."""
    if trained.notes.get("verified", "") is None:
        found = trained.notes["findings"] or ["L0 to L3 found nothing, L4 and L5 were not asked"]
        for line in found:
            print(f"kssm: --no-verify: {printable(line)}", file=sys.stderr)


def _verdict(word: str) -> Text:
    return Text(word, style=COLOURS[word])


def _format_reason(check: Mapping[str, Any]) -> str:
    reason = check["numbers"].get("waived_because")
    notes = [f"waived: {reason}"] if reason else []
    notes += [f"on {check['ran_on']}"] if check.get("ran_on") else []
    return f"{check['got']} ({'; '.join(notes)})" if notes else check["got"]
