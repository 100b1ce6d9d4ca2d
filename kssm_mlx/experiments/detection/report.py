"""docs/detection.md and the table of the README, from docs/results/detection.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[3] / "docs"
README = DOCS.parent / "README.md"
RESULT, PAGE = DOCS / "results" / "detection.json", DOCS / "detection.md"

Found = dict[str, Any]

# Checks that no row of the matrix makes fail, and the test in which each fails.
LEARNABLE, MEMORY = "tests/checks/data/test_task_learnability.py::", "tests/checks/state/test_memory.py::"
OWN_TESTS = {
    "C11": "tests/checks/pretrained/test_base_model.py::test_random_weights_are_caught",
    "D7": "tests/checks/state/test_activity.py::test_a_time_step_that_ignores_the_token_is_caught",
    "D11": MEMORY + "test_what_is_forgotten_or_never_chosen_is_caught",
    "D12": MEMORY + "test_what_is_forgotten_or_never_chosen_is_caught",
    "D20": MEMORY + "test_what_is_forgotten_or_never_chosen_is_caught",
    "G3": LEARNABLE + "test_a_score_at_chance",
    "G4": LEARNABLE + "test_shuffled_targets",
    "G6": LEARNABLE + "test_a_model_above_the_ceiling_sees_its_targets",
    "G9": LEARNABLE + "test_rows_by_heart",
    "G10": LEARNABLE + "test_what_a_fixed_lag_gets",
    "G11": LEARNABLE + "test_learning_that_has_not_begun",
}


def read() -> Found:
    return json.loads(RESULT.read_text("utf-8"))


def render_page(found: Found) -> str:
    """The whole of docs/detection.md."""
    parts = (
        "# Detection\n",
        "Made by `make detect` from [results/detection.json](results/detection.json); edit nothing here.\n",
        _numbers(found),
        "## Healthy controls\n\nA finished run of each family under all checks, and level P before step 1. "
        "The claim compares two learning rates of Mamba, three seeds each.\n",
        _controls(found["controls"]),
        "## Published runs that failed\n\nRecipes in `recipes/failures/`; `kssm train failures/NAME` ends "
        "with exit code 1. In bold what was expected.\n",
        _rows({name: row for name, row in found["rows"].items() if _is_published(name)}),
        "## Sabotages\n\nOne thing broken in a healthy run. In bold what was expected.\n",
        _rows({name: row for name, row in found["rows"].items() if not _is_published(name)}),
        "## Matrix\n\n● fails as expected, ○ fails too, ! warns, · passes; empty: not asked, not measurable. "
        "Columns: the checks that fired at least once.\n",
        _matrix(found),
        "## Checks that no row fires\n\nEach fails in a test of its own.\n",
        _table(["check", "test"], [[id, f"`{OWN_TESTS[id]}`"] for id in sorted(_find_quiet_checks(found))]),
    )
    return "\n".join(parts)


def summary(found: Found) -> str:
    """For the README: published runs that failed, the checks that stop them, and the numbers of all."""
    rows = {name: row for name, row in found["rows"].items() if _is_published(name)}
    cells = [
        [f"`{name.removeprefix('failures/')}`", row["what"], ", ".join(row["expected"])]
        for name, row in rows.items()
    ]
    quiet = ", ".join(sorted(_find_quiet_checks(found)))
    return (
        f"{_table(['failed run', 'its question', 'stopped by'], cells)}\n{_numbers(found)}"
        f"{quiet} fail in tests of their own ([which](docs/detection.md#checks-that-no-row-fires)).\n"
    )


def into_readme(readme: str, found: Found) -> str:
    """The README, made anew between its marks `<!-- failures -->`."""
    begin, end = "<!-- failures -->\n", "<!-- /failures -->"
    before, rest = readme.split(begin)
    return f"{before}{begin}{summary(found)}{end}{rest.split(end, 1)[1]}"


def _is_published(name: str) -> bool:
    return name.startswith("failures/")


def _numbers(found: Found) -> str:
    rows, controls = found["rows"], found["controls"]
    caught = sum(bool(row["caught"]) for row in rows.values())
    as_said = sum(all(id in row["caught"] for id in row["expected"]) for row in rows.values())
    fired = len(found["checks"]) - len(_find_quiet_checks(found))
    verdicts = sum(c["verdicts"] for c in controls.values())
    false = sum(len(got) for c in controls.values() for got in c["failed"].values())
    warned = sum(len(got) for c in controls.values() for got in c["warned"].values())
    return (
        f"{len(rows)} rows: {caught} caught, {as_said} by every check that the row names; "
        f"{fired} of {len(found['checks'])} checks fired. {verdicts} verdicts on healthy controls: "
        f"{false} failures, {warned} warnings. Took {found['seconds'] / 60:.0f} minutes.\n"
    )


def _controls(controls: Found) -> str:
    cells = [
        [name, str(c["seeds"]), str(c["verdicts"]), _counts(c["failed"]), _counts(c["warned"])]
        for name, c in controls.items()
    ]
    return _table(["control", "seeds", "verdicts", "failed", "warned"], cells)


def _counts(said: dict[str, list[str]]) -> str:
    return ", ".join(f"{id} ({len(got)})" for id, got in said.items()) or "none"


def _rows(rows: Found) -> str:
    cells = [
        [
            name.removeprefix("failures/"),
            row["what"],
            _format_caught(row),
            row["caught"].get(row["expected"][0], ""),
        ]
        for name, row in rows.items()
    ]
    return _table(["row", "what is broken", "caught by", "the first of them said"], cells)


def _format_caught(row: Found) -> str:
    expected = [f"**{id}**" for id in row["expected"] if id in row["caught"]]
    return ", ".join([*expected, *(id for id in row["caught"] if id not in row["expected"])]) or "nothing"


def _find_quiet_checks(found: Found) -> list[str]:
    """The checks that no row set off."""
    fired = {id for row in found["rows"].values() for id in row["caught"]}
    return [id for id in found["checks"] if id not in fired]


def _matrix(found: Found) -> str:
    columns = [id for id in found["checks"] if id not in _find_quiet_checks(found)]
    cells = [
        [name.removeprefix("failures/"), *(_mark(row, id) for id in columns)]
        for name, row in found["rows"].items()
    ]
    return _table(["row", *columns], cells)


def _mark(row: Found, id: str) -> str:
    if id in row["caught"]:
        return "●" if id in row["expected"] else "○"
    return "!" if id in row["warned"] else "·" if id in row["silent"] else ""


def _table(head: list[str], cells: list[list[str]]) -> str:
    return "".join(map(_line, [head, ["---"] * len(head), *cells]))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def slips(found: Found) -> list[str]:
    """One line for each row that a named check missed, or could not measure, and each control that failed."""
    missed = [
        f"{name}: expected {id}, caught by {', '.join(row['caught']) or 'nothing'}"
        for name, row in found["rows"].items()
        for id in row["expected"]
        if id not in row["caught"] or id in row["crashed"]
    ]
    return missed + [
        f"control {name}: failed by {id}: {got[0]}"
        for name, control in found["controls"].items()
        for id, got in control["failed"].items()
    ]
