"""The detection matrix: what is written is whole and up to date, and part of it is measured anew."""

import ast
import re
from pathlib import Path

import pytest

from kssm_mlx.checks.core.registry import REGISTRY
from kssm_mlx.experiments.detection import matrix, report
from kssm_mlx.experiments.detection.bench import CONTROLS, Bench
from kssm_mlx.experiments.detection.detect import SEEDS, detect

FOUND, ROWS = report.read(), matrix.rows()
QUICK = (  # rows of every kind that take a second or two
    "future leak by mean",
    "state not reset",
    "cache off by one",
    "no gradient in one branch",
    "double softmax",
    "id beyond the vocabulary",
    "off by one targets",
    "sign of the coupling",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"))


def test_every_row_and_control_there_is_has_been_measured():
    assert FOUND["rows"].keys() == ROWS.keys()
    assert FOUND["controls"].keys() == {*CONTROLS, "claim"}
    assert all(FOUND["controls"][family]["seeds"] == len(SEEDS) for family in CONTROLS)


def test_there_are_the_published_failures_and_thirty_more():
    assert len(matrix.failed_runs()) >= 13
    assert len(ROWS) - len(matrix.failed_runs()) >= 30


def test_nothing_slips_and_nothing_healthy_is_failed():
    assert report.slips(FOUND) == []


@pytest.mark.parametrize("name", FOUND["rows"])
def test_a_row_expects_what_the_code_says_now(name):
    row = ROWS[name]
    assert FOUND["rows"][name]["expected"] == list(row.expected) and row.expected
    assert set(row.expected) <= REGISTRY.keys()
    assert FOUND["rows"][name]["what"] == row.what and row.what


def test_the_pages_are_made_of_the_result():
    assert report.PAGE.read_text("utf-8") == report.render_page(FOUND)
    readme = report.README.read_text("utf-8")
    assert readme == report.into_readme(readme, FOUND)
    assert all(f"`{name.removeprefix('failures/')}`" in readme for name in matrix.failed_runs())


@pytest.mark.parametrize("name", QUICK)
def test_a_row_is_caught_now(name, bench, uncompiled):
    """By the checks that were named, with a measurement."""
    row = ROWS[name]
    measured = matrix.measure(row, bench, row.expected)
    assert list(measured["caught"]) == list(row.expected) and measured["crashed"] == []


def test_a_healthy_run_is_failed_by_nothing_now(bench, uncompiled):
    said = matrix.healthy("mamba", 0, bench)
    assert len(said) > 40
    assert matrix.count_verdicts(said, 1)["failed"] == {}


def test_a_slip_is_named():
    row = {"expected": ["C1", "C2"], "caught": {"C2": "0.1"}, "crashed": ["C2"]}
    control = {"failed": {"C7": ["no gradient"]}}
    said = report.slips({"rows": {"mine": row}, "controls": {"kssm": control}})
    assert said == [
        "mine: expected C1, caught by C2",
        "mine: expected C2, caught by C2",
        "control kssm: failed by C7: no gradient",
    ]


def test_no_folder_of_a_machine_is_written_down():
    said = "/home/me/runs/a/train.bin is short; 3 nats/token, train/eval; ids of file:/home/me/b.txt"
    assert matrix.without_places(said) == "train.bin is short; 3 nats/token, train/eval; ids of file:b.txt"
    assert not re.search(r"(?<!\S)/(home|tmp|Users|work)/", report.RESULT.read_text("utf-8"))


def test_a_patch_lasts_for_one_row(bench):
    class Owner:
        value = 1

    bench.patch(Owner, "value", 2)
    assert Owner.value == 2
    bench.mend()
    assert Owner.value == 1


def test_every_sabotage_says_what_it_breaks():
    folder = Path(matrix.__file__).parent
    functions = [
        node
        for path in folder.glob("broken_*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    assert len(functions) == len(matrix.SABOTAGES)
    assert all(ast.get_docstring(function) for function in functions)


@pytest.mark.slow
def test_the_whole_matrix(tmp_path):
    found = detect(tmp_path, say=lambda line: None)
    assert report.slips(found) == []
