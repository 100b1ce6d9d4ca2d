"""docs/provenance.md from the rows beside this file: `python -m tests.provenance.document` writes it."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kssm_mlx.experiments.detection import report

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "provenance.md"
PROJECTS = ("phase_models", "allostasis", "hybrids")
FOLDERS = {"recipe": "recipes", "failure": "recipes/failures"}
NOT_BUILT = "not built"
SHOWN = ("recipe", "failure", "check", "test", "command")

HEAD = """# Provenance

Made by `python -m tests.provenance.document` from `tests/provenance/*.toml`; edit those.

What the documents of earlier projects name, and where it lives here: a file, a recipe, a failed run that is
kept, or a check (`kssm verify --explain ID`). Each row names a test or a command that shows it, or says what
is not built. `tests/provenance` runs the commands: a few in `make test`, all in `make test-all`. `kssm train
failures/NAME` ends with exit code 1. A check is shown by a row of [detection.md](detection.md#matrix), which
`make detect` runs.
"""


class Place(NamedTuple):
    """kind: "path", one of `SHOWN` or "not built"; name: which, or why not."""

    kind: str
    name: str

    @property
    def path(self) -> str | None:
        """From the root of the repository; None where it is no file."""
        if self.kind in FOLDERS:
            return f"{FOLDERS[self.kind]}/{self.name}.toml"
        return self.name if self.kind == "path" else None


def projects() -> dict[str, dict[str, Any]]:
    """Name -> title, about, pages and sections, each with its rows [number, what, places ...]."""
    return {n: tomllib.loads((Path(__file__).parent / f"{n}.toml").read_text("utf-8")) for n in PROJECTS}


def place(text: str) -> Place:
    kind, colon, name = text.partition(":")
    return Place(kind, name.strip()) if colon else Place("path", text)


def command(where: Place) -> str | None:
    """What a reader types to see it; None where a test shows it."""
    if where.kind == "recipe":
        return f"kssm train {where.name} --smoke"
    if where.kind == "failure":
        return f"kssm train failures/{where.name}"
    return where.name if where.kind == "command" else None


@cache
def sabotages() -> dict[str, str]:
    """id of a check -> the first row of docs/detection.md in which it fails."""
    rows = [*report.read()["rows"].items()][::-1]
    caught = {id: name for name, row in rows for id in row["caught"]}
    return caught | {id: name for name, row in rows for id in row["expected"]}


def render() -> str:
    return "\n".join([HEAD, *(line for project in projects().values() for line in _project(project))])


def _project(project: dict[str, Any]) -> list[str]:
    pages = ", ".join(f"[{page}](background/{page})" for page in project["pages"])
    lines = [f"## {project['title']}", "", f"{project['about']} Facts: {pages}.", ""]
    for section in project["sections"]:
        lines += [f"### {section['name']}", ""] if section["name"] else []
        lines += ["| | item | where | shown by |", "| --- | --- | --- | --- |"]
        lines += [
            _row(number, what, [place(text) for text in places]) for number, what, *places in section["rows"]
        ]
        lines.append("")
    return lines


def _row(number: str, what: str, places: list[Place]) -> str:
    where = ", ".join(_words(p) for p in places if p.kind not in ("test", "command"))
    shown = "; ".join(dict.fromkeys(_shown(p) for p in places if p.kind in SHOWN))
    return f"| {number} | {what} | {where} | {shown} |"


def _words(where: Place) -> str:
    if where.path is None:
        return where.name if where.kind == "check" else f"{where.kind}: {where.name}"
    label = f"{where.kind} {where.name}" if where.kind in FOLDERS else where.name.removeprefix("kssm_mlx/")
    return f"[{label}](../{where.path})"


def _shown(where: Place) -> str:
    if where.kind == "test":
        return f"`{where.name}`"
    if where.kind == "check":
        return f"{where.name}: {_fires(where.name)}"
    return f"`{command(where)}`"


def _fires(id: str) -> str:
    if id in report.OWN_TESTS:
        return f"`{report.OWN_TESTS[id]}`"
    return OUTSIDE.get(id) or f'row "{sabotages()[id]}"'


# Checks of weights are asked of files, not of runs, and are no columns of the matrix.
OUTSIDE = {
    "W24": "`tests/runner/test_verify_weights.py::test_random_weights_do_not_speak`",
    "W25": "`tests/checks/pretrained/test_pretrained.py`",
}

if __name__ == "__main__":
    DOCUMENT.write_text(render(), "utf-8")
