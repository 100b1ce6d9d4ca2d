"""The table of architectures: every cell is backed by tests that exist, and the files show it as it is."""

import re
import subprocess
import sys
from pathlib import Path

from tests.weights import table

ROOT = Path(__file__).parents[2]
NAMED = {test for cells in table.rows().values() for cell in cells for test in cell.tests}


def test_every_test_that_a_cell_names_is_collected():
    paths = sorted({test.split("::")[0] for test in NAMED})
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        *paths,
    ]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert collected and not NAMED - set(collected)


def test_only_a_dash_is_without_tests():
    for cells in table.rows().values():
        assert all((cell.text == "-") == (not cell.tests) for cell in cells)


def test_every_parity_error_is_measured_and_below_the_tolerance():
    errors = [cells[1].text for name, cells in table.rows().items() if name != "K-SSM"]
    assert len(errors) == 5 and all(re.fullmatch(r"\d\.\de-\d\d", e) and float(e) < 1e-4 for e in errors)


def test_the_files_are_up_to_date():
    advice = "run python -m tests.weights.table"
    assert (table.RESULTS / "base-models.md").read_text() == table.render(), advice
