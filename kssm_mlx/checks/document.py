"""docs/checks.md from the code, one row per check; `python -m kssm_mlx.checks.document` writes it.

With the name of a file it writes the same table there, the checks of installed plug-ins among ours.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from kssm_mlx import files
from kssm_mlx.checks.catalog import Entry, list_entries

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = re.compile(r"docs/background/([\w-]+)\.md#([\w-]+)")
DETECTION = DOCS / "results" / "detection.json"

INTRODUCTION = """# Checks

Made by `python -m kssm_mlx.checks.document` from the texts in `kssm_mlx/checks/`; edit those.

| level | when | asked by |
|---|---|---|
| P | before step 1, in seconds | `kssm train`, `kssm verify RECIPE`, `kssm verify WEIGHTS` |
| S | after a smoke run or a run, in minutes | `kssm train`, `kssm verify RUN` |
| R | during a run, at every evaluation | `kssm train`, `kssm verify RUN` |
| G | before a claim | `kssm verify RUN --level G`, `kssm verify RUN_A RUN_B ...` |

A failure stops the run, after a checkpoint, unless `--waive ID="reason"` or the recipe's `[waive]` says why
it need not; the reason is kept in manifest.json and checks.json. `--no-verify` stops nothing and says what
would have been stopped. A check that lacks what it needs says so ("not measurable"), and so does one of what
was learned where nothing was, unless `--untrained` asks for it. Every verdict names its evidence: untrained,
1 run, n seeds.

Cost: forward passes of at most 8 x 128 tokens before step 1, a gradient counted as three; a check without one
looks at data, files or rows. From 1e9 parameters a check of more than 8 passes runs on a fresh small model
with the same options, and the verdict says so. Checks and models of your own: [checks-own.md](checks-own.md).

Sources are pages of [background/](background/README.md): what happened elsewhere that the check would have
stopped.

H and K are of the machine: `kssm doctor` asks them.

Levels L0 to L5 are the layers of `kssm verify-weights`: container, names, digests, values, arithmetic,
behaviour; `--quick` and every loading of a model stop after L3. Their sabotage is done to every architecture
in `tests/faults`.

"""
ALARMS = """False alarms: verdicts "fail" of all verdicts on runs that were made as they should be, from
[results/detection.json](results/detection.json), see [detection.md](detection.md); {} of {} in all. No number
where nothing was measured: the check was not measurable on them, or is not one of runs.

"""
PARTS = ("definition", "threshold", "chance", "caught", "sabotage")
COLUMNS = (
    "id",
    "level",
    "cost",
    "property",
    "definition",
    "threshold and reason",
    "chance",
    "would have caught",
    "sabotage",
    "source",
)


def render_table(entries: Iterable[Entry]) -> str:
    """The Markdown of docs/checks.md, a row per entry; false alarms are a column where they were counted."""
    rows, alarms = [_row(e) for e in entries], false_alarms()
    columns = [*COLUMNS, *(["false alarms"] if alarms else [])]
    if alarms:
        rows = [[*row, "{} of {}".format(*alarms[row[0]]) if row[0] in alarms else ""] for row in rows]
    said = ALARMS.format(*map(sum, zip(*alarms.values(), strict=True))) if alarms else ""
    return INTRODUCTION + said + "".join(map(_line, [columns, ["---"] * len(columns), *rows]))


def render_entry(entry: Entry) -> str:
    """A page of one check, for the site: what the table says of it, and what made it fire when it was tried.

    Links are relative to docs/checks/.
    """
    facts = [["level", entry.level], ["cost", entry.cost or "no forward pass"], ["ask", _command(entry)]]
    if entry.source:
        facts.append(["source", PAGE.sub(r"[\1](../background/\1.md#\2)", entry.source)])
    alarms = false_alarms().get(entry.id)
    sections = {
        "Definition": entry.explanation.get("definition", ""),
        "Threshold, and why": entry.explanation.get("threshold", ""),
        "Chance": entry.explanation.get("chance", ""),
        "What it would have caught": entry.explanation.get("caught", ""),
        "How to make it fire": entry.explanation.get("sabotage", ""),
        "What made it fire": _list_firing_rows(entry.id),
        "False alarms": "{} of {} verdicts on healthy runs.".format(*alarms) if alarms else "",
    }
    body = "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items() if text)
    table = "".join(map(_line, [["", ""], ["---"] * 2, *facts]))
    return f"# {entry.id}: {entry.title}\n\n{table}{body}"


def _command(entry: Entry) -> str:
    asked = {"H": "kssm doctor", "K": "kssm doctor", "W": "kssm verify-weights PATH"}
    return f"`{asked.get(entry.id[0], f'kssm verify RUN --only {entry.id}')}`"


def _list_firing_rows(id: str) -> str:
    """The rows of the detection matrix that a check failed, with what it measured; "" for none."""
    rows = json.loads(DETECTION.read_text("utf-8"))["rows"] if DETECTION.is_file() else {}
    found = [[row["what"], row["caught"][id]] for row in rows.values() if id in row["caught"]]
    return "".join(map(_line, [["what was broken", "it said"], ["---"] * 2, *found])) if found else ""


def false_alarms() -> dict[str, tuple[int, int]]:
    """id -> (failed, asked) on the healthy controls of the detection matrix; empty before there is one."""
    if not DETECTION.is_file():
        return {}
    controls = json.loads(DETECTION.read_text("utf-8"))["controls"].values()
    ids = {id for control in controls for id in control.get("asked", ())}
    return {
        id: (
            sum(len(control["failed"].get(id, ())) for control in controls),
            sum(control["asked"].get(id, 0) for control in controls),
        )
        for id in ids
    }


def list_own_entries() -> list[Entry]:
    """Every check of this package, in the order of the numbers."""
    return [entry for entry in list_entries().values() if entry.package == "kssm_mlx"]


def _row(d: Entry) -> list[str]:
    source = PAGE.sub(r"[\1](background/\1.md#\2)", d.source)
    return [d.id, d.level, d.cost, d.title, *(d.explanation.get(part, "") for part in PARTS), source]


def _line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def main() -> None:
    if sys.argv[1:]:
        files.replace(Path(sys.argv[1]), render_table(list_entries().values()))
    else:
        files.replace(DOCS / "checks.md", render_table(list_own_entries()))


if __name__ == "__main__":
    main()
