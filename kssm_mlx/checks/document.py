"""docs/checks.md from the code, one row per check; `python -m kssm_mlx.checks.document` writes it."""

from __future__ import annotations

from pathlib import Path

from kssm_mlx import files
from kssm_mlx.checks.definitions import Entry, definitions

INTRODUCTION = """# Checks

Made by `python -m kssm_mlx.checks.document` from the texts in `kssm_mlx/checks/`; edit those.

Level P runs before step 1 (`kssm train`, `kssm verify RECIPE`), level S at the end of a run. A failure stops
the run, unless `--waive ID="reason"` records why it need not. A check that lacks what it needs says so ("not
measurable"). Sources are the project's reference notes; `Cn` and `Gn` are their numbers.

Levels L0 to L5 are the layers of `kssm verify-weights`: container, names, digests, values, arithmetic,
behaviour; `--quick` and every loading of a model stop after L3. Their sabotage is done to every architecture
in `tests/faults`.

"""
PARTS = ("definition", "threshold", "caught", "sabotage")
COLUMNS = (
    "id",
    "level",
    "property",
    "definition",
    "threshold and reason",
    "would have caught",
    "sabotage",
    "source",
)


def render() -> str:
    """The Markdown of docs/checks.md, rows in the order of the numbers."""
    rows = map(_row, definitions().values())
    return INTRODUCTION + "".join(map(_line, [COLUMNS, ["---"] * len(COLUMNS), *rows]))


def _row(d: Entry) -> list[str]:
    return [d.id, d.level, d.title, *(d.explanation[part] for part in PARTS), d.source]


def _line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def main() -> None:
    files.replace(Path(__file__).resolve().parents[2] / "docs" / "checks.md", render())


if __name__ == "__main__":
    main()
