"""docs/provenance.md from the rows beside this file: `python -m tests.provenance.document` writes it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "provenance.md"
NOTES = ("liminal", "allostasis", "groundthink")
FOLDERS = {"recipe": "recipes", "failure": "recipes/failures"}
NOT_BUILT = "not built"

HEAD = """# Provenance

Made by `python -m tests.provenance.document` from `tests/provenance/*.toml`; edit those.

Where everything lives that the notes on the precursors name: a file, a recipe, a failed run kept alive, or a
check (`kssm verify --explain ID`). What is not built says so.
"""


class Place(NamedTuple):
    """kind: "path", "recipe", "failure", "check" or "not built"; name: which, or why not."""

    kind: str
    name: str

    @property
    def path(self) -> str | None:
        """From the root of the repository; None where it is no file."""
        if self.kind in FOLDERS:
            return f"{FOLDERS[self.kind]}/{self.name}.toml"
        return self.name if self.kind == "path" else None


def notes() -> dict[str, dict[str, Any]]:
    """Name -> title, source and sections, each with its rows [which note, what, places ...]."""
    return {n: tomllib.loads((Path(__file__).parent / f"{n}.toml").read_text("utf-8")) for n in NOTES}


def place(text: str) -> Place:
    kind, colon, name = text.partition(":")
    return Place(kind, name.strip()) if colon else Place("path", text)


def render() -> str:
    return "\n".join([HEAD, *(line for note in notes().values() for line in _note(note))])


def _note(note: dict[str, Any]) -> list[str]:
    lines = [f"## {note['title']}", "", f"The checklist of {note['source']}.", ""]
    for section in note["sections"]:
        lines += [f"### {section['name']}", ""] if section["name"] else []
        lines += ["| | item | where |", "| --- | --- | --- |"]
        lines += [f"| {which} | {what} | {_where(places)} |" for which, what, *places in section["rows"]]
        lines.append("")
    return lines


def _where(places: list[str]) -> str:
    return ", ".join(_words(place(text)) for text in places)


def _words(where: Place) -> str:
    if where.path is None:
        return where.name if where.kind == "check" else f"{where.kind}: {where.name}"
    label = f"{where.kind} {where.name}" if where.kind in FOLDERS else where.name.removeprefix("kssm_mlx/")
    return f"[{label}](../{where.path})"


if __name__ == "__main__":
    DOCUMENT.write_text(render(), "utf-8")
