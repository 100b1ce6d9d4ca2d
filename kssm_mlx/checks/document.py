"""docs/checks.md from the code, one row per check; `python -m kssm_mlx.checks.document` writes it.

With the name of a file it writes the same table there, the checks of installed plug-ins among ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from kssm_mlx import files
from kssm_mlx.checks.definitions import Entry, definitions

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

Sources are the project's reference notes; `Cn`, `Dn` and `Gn` are their numbers.

H and K are of the machine: `kssm doctor` asks them.

Levels L0 to L5 are the layers of `kssm verify-weights`: container, names, digests, values, arithmetic,
behaviour; `--quick` and every loading of a model stop after L3. Their sabotage is done to every architecture
in `tests/faults`.

"""
PARTS = ("definition", "threshold", "caught", "sabotage")
COLUMNS = (
    "id",
    "level",
    "cost",
    "property",
    "definition",
    "threshold and reason",
    "would have caught",
    "sabotage",
    "source",
)


def render(entries: Iterable[Entry]) -> str:
    """The Markdown of docs/checks.md, a row per entry."""
    rows = map(_row, entries)
    return INTRODUCTION + "".join(map(_line, [COLUMNS, ["---"] * len(COLUMNS), *rows]))


def ours() -> list[Entry]:
    """Every check of this package, in the order of the numbers."""
    return [entry for entry in definitions().values() if entry.package == "kssm_mlx"]


def _row(d: Entry) -> list[str]:
    return [d.id, d.level, d.cost, d.title, *(d.explanation.get(part, "") for part in PARTS), d.source]


def _line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def main() -> None:
    if sys.argv[1:]:
        files.replace(Path(sys.argv[1]), render(definitions().values()))
    else:
        files.replace(Path(__file__).resolve().parents[2] / "docs" / "checks.md", render(ours()))


if __name__ == "__main__":
    main()
