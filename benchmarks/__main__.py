"""`python -m benchmarks`: measure, print a table, write benchmarks/results/<device>.{json,md,png}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from benchmarks import cases
from benchmarks.measure import Timing, compare
from kssm_mlx import environment, files
from kssm_mlx.checks.host import measure as machine_rates

RESULTS = Path(__file__).parent / "results"
LENGTHS, TURNS = (64, 128, 256), 7
FAMILIES = {
    "kssm kappa=1": {},
    "kssm kappa=0": {"kappa": 0.0},
    "kssm hold": {"leaf": "hold"},
}


def all_cases() -> Iterator[cases.Case]:
    yield from cases.scans(LENGTHS)
    yield cases.training(FAMILIES, 128)
    yield cases.decoding(FAMILIES)


def main() -> None:
    console, measured = Console(highlight=False), []
    for case in all_cases():
        with console.status(case.title):
            timings = compare(case.contenders, TURNS)
        measured.append((case, timings))
        console.print(_table(case, timings))
    facts = {**environment.facts(), "rates": machine_rates()}
    device = f"{facts['device']['type']}-{facts['machine']}"
    RESULTS.mkdir(exist_ok=True)
    written = {
        "json": json.dumps({"environment": facts, "cases": [_plain(*m) for m in measured]}, indent=1),
        "md": _markdown(device, facts, measured),
    }
    for ending, text in written.items():
        files.replace(RESULTS / f"{device}.{ending}", text + "\n")
        console.print(f"written: benchmarks/results/{device}.{ending}")


def _rows(case: cases.Case, timings: list[Timing]) -> Iterator[tuple[str, ...]]:
    for t in timings:
        yield (
            t.name,
            f"{t.milliseconds:.1f}",
            f"{case.tokens / t.milliseconds * 1e3:,.0f}",
            f"{t.ratio:.2f}x ({t.low:.2f} to {t.high:.2f})",
            f"{t.peak_megabytes:.0f}",
            f"{t.first_call_seconds:.1f}",
        )


HEADER = ("", "ms", "tokens/s", "speed against the first", "peak MB", "first call s")


def _table(case: cases.Case, timings: list[Timing]) -> Table:
    table = Table(*HEADER, title=case.title, title_justify="left")
    for row in _rows(case, timings):
        table.add_row(*row)
    return table


def _plain(case: cases.Case, timings: list[Timing]) -> dict:
    return {"title": case.title, "tokens": case.tokens, "timings": [asdict(t) for t in timings]}


def _markdown(device: str, facts: dict, measured: list[tuple[cases.Case, list[Timing]]]) -> str:
    head = (
        f"# Measured on {device}\n\nmlx {facts['packages'].get('mlx')}, "
        f"default device {mx.default_device()}. Medians of {TURNS} turns; the range is between the quartiles "
        "of the ratio within a turn. Regenerate with `make bench`."
    )
    parts = [head]
    for case, timings in measured:
        rows = ["| " + " | ".join(row) + " |" for row in _rows(case, timings)]
        parts.append(
            "\n".join([f"## {case.title}\n", "| " + " | ".join(HEADER) + " |", "|---" * 6 + "|", *rows])
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
