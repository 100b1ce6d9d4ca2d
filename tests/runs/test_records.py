"""The files of a run, whatever a crash or a hand did to them: a value, or one line that says what to do."""

from __future__ import annotations

import json

import pytest

from kssm_mlx.errors import CheckpointError
from kssm_mlx.parsing import parse_json, parse_toml
from kssm_mlx.runs import records
from kssm_mlx.runs.arms import group_by_arm
from kssm_mlx.runs.layout import CHECKS, METRICS, RECIPE, SAMPLES


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "is a JSON list; expected an object"),
        ("null", "is a JSON NoneType; expected an object"),
        ("{", "is not JSON"),
        ("[" * 100_000, "nested more than 200 levels deep"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_a_recipe_that_is_none_is_one_line(tmp_path, content, message):
    (tmp_path / RECIPE).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message):
        records.read_recipe(tmp_path)


@pytest.mark.parametrize("bad", ['{"step": "x"}', '{"step": null}', "3", "[" * 5000, "{", '{"step": true}'])
def test_a_row_that_is_none_is_named_unless_it_is_the_torn_last_one(tmp_path, bad):
    good = json.dumps({"step": 1, "loss": 2.0})
    (tmp_path / METRICS).write_text(f"{good}\n{bad}\n{good}\n")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl line 2 is (no row|not JSON)"):
        records.read_metrics(tmp_path)
    (tmp_path / METRICS).write_text(f'{good}\n{{"step": 2, "lo')
    assert records.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_rows_without_a_step_are_no_rows_of_a_run(tmp_path):
    (tmp_path / METRICS).write_text('{"note": 1}\n{"step": 2}\n')
    assert records.read_metrics(tmp_path) == [{"step": 2}]


@pytest.mark.parametrize("stage", ["3", '{"a": 1}', "[1]"])
def test_verdicts_that_are_none_are_named(tmp_path, stage):
    (tmp_path / CHECKS).write_text('{"final": ' + stage + "}")
    with pytest.raises(CheckpointError, match="stage 'final' is no list of verdicts"):
        records.read_checks(tmp_path)
    (tmp_path / CHECKS).unlink()
    assert records.read_checks(tmp_path) == {}


def test_runs_that_differ_in_seed_or_in_how_they_are_watched_are_one_arm():
    def recipe(**changes):
        table = {"train": {"seed": 0, "lr": 1.0}, "model": {"kappa": 1}, "eval": {"tokens": 9}}
        return {**table, **changes}

    runs = [
        recipe(),
        recipe(model={"kappa": 0}),
        recipe(train={"seed": 1, "lr": 1.0}),
        recipe(eval={"tokens": 99}, about={"question": "?"}, configuration={"x": 1}),
        recipe(train={"seed": 1, "lr": 2.0}),
    ]
    arms = group_by_arm(range(5), lambda i: runs[i])
    assert arms == [[0, 2, 3], [1], [4]]


@pytest.mark.parametrize("text", ["[" * 5000, '{"a":' * 5000, "[" * 201 + "]" * 201])
def test_deep_json_is_refused_and_quoted_brackets_are_none(text):
    with pytest.raises(ValueError, match="nested more than 200"):
        parse_json(text)
    assert parse_json(json.dumps({"a": "[" * 5000 + '\\"{' * 300})) == {"a": "[" * 5000 + '\\"{' * 300}


def test_long_numbers_are_read():
    assert parse_json("9" * 5000) == float("inf")
    assert parse_json("9" * 100) == int("9" * 100)
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested more than 200"),
        ("a = " + "9" * 5000, "too many digits"),
        (".".join("a" * 20_000) + " = 1", "a key of more than 64 parts"),
        ("a = ", "Invalid value"),
    ],
)
def test_toml_that_would_hang_or_recurse_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_toml(text)
    assert parse_toml("\ufeffa = 1") == {"a": 1}


@pytest.mark.parametrize(
    "table, message",
    [
        ({"about": "x"}, r"recipe\.json has about = 'x'; expected a table; restore it from a copy"),
        ({"about": {"expected": {"metric": "R"}}}, r"about\.expected has no 'value'"),
        ({"train": {"context": "9"}}, r"recipe\.json: train has context = '9'; expected a number"),
        ({"train": {"context": True}}, r"train has context = True; expected a number"),
    ],
)
def test_a_setting_of_another_kind_is_named(tmp_path, table, message):
    (tmp_path / RECIPE).write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=message):
        records.read_recipe(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"numbers": None}, "C1 has numbers = None; expected a table|numbers = None; expected a table"),
        ({"numbers": {"context_gain": "much"}}, "C1 has context_gain = 'much'; expected a number or null"),
        ({"numbers": {"ladder": {"bigram": []}}}, r"C1 has bigram = \[\]; expected a number or null"),
        ({"id": 3}, "has id = 3; expected a text"),
    ],
)
def test_a_verdict_of_another_kind_is_named(tmp_path, change, message):
    """A report ended with a KeyError or a TypeError."""
    verdict = dict.fromkeys(("title", "level", "verdict", "got", "expected"), "x") | {
        "id": "C1",
        "numbers": {},
    }
    (tmp_path / CHECKS).write_text(json.dumps({"final": [verdict]}))
    assert records.read_checks(tmp_path) == {"final": [verdict]}
    (tmp_path / CHECKS).write_text(json.dumps({"final": [verdict | change]}))
    with pytest.raises(CheckpointError, match=message):
        records.read_checks(tmp_path)
    (tmp_path / CHECKS).write_text(json.dumps({"final": [{"id": "C1"}]}))
    with pytest.raises(CheckpointError, match="stage 'final' has no 'title'"):
        records.read_checks(tmp_path)


def test_a_sample_without_text_and_a_number_that_is_none_are_named(tmp_path):
    (tmp_path / SAMPLES).write_text('{"step": 1, "prompt": ""}\n')
    with pytest.raises(CheckpointError, match="has no 'text'"):
        records.read_samples(tmp_path)
    (tmp_path / METRICS).write_text('{"step": 1, "kind": "eval", "nats_per_token": "low"}\n')
    with pytest.raises(
        CheckpointError, match=r"line 1 has nats_per_token = 'low'; expected a number or null"
    ):
        records.read_metrics(tmp_path)
