"""docs/checks.md from the code, one row per check; `python -m kssm_mlx.checks.document` writes it."""

from __future__ import annotations

from pathlib import Path

from kssm_mlx import files
from kssm_mlx.checks.suites import REGISTRY

INTRODUCTION = """# Checks

Made by `python -m kssm_mlx.checks.document` from the docstrings in `kssm_mlx/checks/`; edit those.

Level P runs before step 1 (`kssm train`, `kssm verify RECIPE`), level S at the end of a run. A failure stops
the run, unless `--waive ID="reason"` records why it need not. A check that lacks what it needs says so ("not
measurable"). Sources are the project's reference notes; `Cn` and `Gn` are their numbers.

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
    ids = sorted(REGISTRY, key=lambda id: (id[0], int(id[1:])))
    return INTRODUCTION + "".join(map(_line, [COLUMNS, ["---"] * len(COLUMNS), *map(_row, ids)]))


def _row(id: str) -> list[str]:
    d = REGISTRY[id]
    return [d.id, d.level, d.title, *(d.explanation[part] for part in PARTS), d.source]


def _line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def main() -> None:
    files.replace(Path(__file__).resolve().parents[2] / "docs" / "checks.md", render())


if __name__ == "__main__":
    main()
