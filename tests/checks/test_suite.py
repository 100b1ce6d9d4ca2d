"""Suites: order, waivers, refusal of unknown names, verdicts on disk, and the table made from docstrings."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from kssm_mlx.checks import document, suite
from kssm_mlx.checks.catalog import find_entry, list_entries
from kssm_mlx.checks.core.registry import (
    DOCTOR,
    LEVELS,
    REGISTRY,
    WEIGHT_LEVELS,
    Context,
    Definition,
    require_no_failure,
    verdict,
)
from kssm_mlx.errors import CheckFailed, CheckpointError, ConfigError
from kssm_mlx.runs import records
from tests.support.fakes import Memoryless, TinyRecurrent


def context(kind=TinyRecurrent):
    model = kind()
    return Context(model=model, config=model.args)


def test_every_check_belongs_to_a_suite_and_is_explained():
    levels = (*LEVELS, *WEIGHT_LEVELS, DOCTOR)
    assert {id for level in levels for id in suite.list_suite(level)} == set(REGISTRY) - {
        "W0"
    }  # told at the start
    for d in REGISTRY.values():
        assert set(d.explanation) - {"chance"} == {"definition", "threshold", "caught", "sabotage"}
        assert all(d.explanation.values())


def test_the_preflight_level_runs_in_a_stable_order_with_times(prepared):
    data, recipe = prepared
    model = TinyRecurrent(data.vocab_size)
    checks = suite.run_suite(Context(model, model.args, recipe, data, data.tokenizer))
    assert tuple(c.id for c in checks) == suite.list_suite("P")
    assert [(c.id, c.got) for c in checks if not c.ok] == []
    assert all(c.seconds > 0 and c.evidence == "untrained" for c in checks)


def test_a_failed_check_stops_with_name_numbers_and_fix():
    with pytest.raises(CheckFailed, match=r"C1 earlier tokens reach .* got reach 0 tokens.*nothing mixes"):
        require_no_failure(suite.run_suite(context(Memoryless), ["C1", "C2"]))


def test_a_waiver_is_recorded_and_lets_the_run_go_on():
    checks = suite.run_suite(context(Memoryless), ["C1", "C2"], {"C1": "v3 is the subject here"})
    require_no_failure(checks)
    assert [c.verdict for c in checks] == ["waived", "pass"]
    assert checks[0].numbers["waived_because"] == "v3 is the subject here"


@pytest.mark.parametrize(
    "waivers, message", [({"C99": "x"}, "no such check"), ({"C1": "  "}, "a waiver needs a reason")]
)
def test_an_unusable_waiver_is_refused(waivers, message):
    with pytest.raises(ConfigError, match=message):
        suite.run_suite(context(), ["C6"], waivers)


@pytest.mark.parametrize(
    "which, message", [("Q", "no level 'Q'"), (["C6", "C111"], "no check 'C111'; did you")]
)
def test_an_unknown_name_is_refused_before_anything_runs(which, message):
    with pytest.raises(ConfigError, match=message):
        suite.run_suite(context(), which)


def test_a_check_that_raises_has_failed():
    def broken(_):
        raise ValueError("shapes (3,) and (4,)")

    check = suite.run_check(replace(REGISTRY["C6"], run=broken), context())
    assert (check.verdict, check.got) == ("fail", "ValueError: shapes (3,) and (4,)")
    assert "in broken" in check.numbers["traceback"]


def keep(run, stage, checks):
    records.write_checks(run, stage, [check.to_json() for check in checks])


def test_stages_are_kept_side_by_side(tmp_path):
    before = suite.run_suite(context(Memoryless), ["C1"], {"C1": "on purpose"})
    keep(tmp_path, "preflight", before)
    keep(tmp_path, "final", suite.run_suite(context(), ["C6"]))
    stages = records.read_checks(tmp_path)
    assert list(stages) == ["preflight", "final"]
    assert stages["preflight"][0]["numbers"]["waived_because"] == "on purpose"
    assert stages["final"][0]["verdict"] == "pass" and stages["final"][0]["ok"]
    assert [p.name for p in tmp_path.iterdir()] == ["checks.json"]


def test_numbers_that_json_lacks_become_words(tmp_path):
    keep(tmp_path, "final", [verdict("C6", False, "nan", "0", "fix", loss=float("nan"))])

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    stages = json.loads((tmp_path / "checks.json").read_text(), parse_constant=refuse)
    assert stages["final"][0]["numbers"] == {"loss": "nan"}


def test_a_broken_file_is_told_in_one_line(tmp_path):
    (tmp_path / "checks.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checks.json is not JSON.*move it away"):
        records.write_checks(tmp_path, "final", [])


def test_the_docstring_is_the_documentation():
    def example(_):
        """What is measured
        over two lines.

        Threshold: 3: because.
        Caught: nothing yet.
        Sabotage: a lie.
        """

    parts = Definition("X1", "P", "t", "s", example).explanation
    assert parts["definition"] == "What is measured over two lines."
    assert parts["threshold"] == "3: because."


def test_the_table_in_docs_is_up_to_date():
    written = Path(__file__).parents[2] / "docs" / "checks.md"
    assert written.read_text() == document.render_table(document.list_own_entries()), (
        "run python -m kssm_mlx.checks.document"
    )
    rows = re.findall(r"^\| ([A-Z]+\d+) \|", written.read_text(), re.MULTILINE)
    assert rows == [entry.id for entry in document.list_own_entries()] and set(rows) >= REGISTRY.keys()


def test_every_check_of_weights_is_explained():
    entries = [e for e in list_entries().values() if e.id.startswith("W")]
    assert [e.id for e in entries] == [f"W{n}" for n in range(29)]
    for entry in entries:
        assert set(entry.explanation) == {"definition", "threshold", "caught", "sabotage"}, entry.id
        assert all(entry.explanation.values()) and entry.title and entry.source
        assert not entry.explanation["definition"].startswith(entry.id)


def test_an_unknown_check_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="no check 'W77'; did you mean"):
        find_entry("W77")


def test_a_check_of_weights_or_of_the_machine_is_not_asked_of_a_run():
    for id, command in (("W20", "kssm verify-weights"), ("H1", "kssm doctor"), ("K6", "kssm doctor")):
        with pytest.raises(ConfigError, match=f"{id} is not asked of runs and models: {command} asks it"):
            suite.select_ids([id])
        with pytest.raises(ConfigError, match=f"waiver of {id}: no such check of runs"):
            suite.require_known_waivers({id: "because"})
