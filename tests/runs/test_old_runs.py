"""A run folder that version 0.1.0 wrote opens, goes on, is verified and reported."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import kssm_mlx
from kssm_mlx.checks import suite
from kssm_mlx.cli.run_choice import choose
from kssm_mlx.errors import KssmError
from kssm_mlx.reports import report, state_claims
from kssm_mlx.runs.layout import RECIPE
from kssm_mlx.runs.records import read_metrics, read_recipe

OLD = Path(__file__).parent / "run-0.1.0"

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(suite, "list_suite", lambda level: {"S": ("C8",)}.get(level, ()))
    return shutil.copytree(OLD, tmp_path / "run-0.1.0")


def go_on(folder: Path, *settings: str):
    chosen = choose(str(folder), None, list(settings), smoke=False, resume=True)
    said = Console(file=io.StringIO(), width=200)
    result = kssm_mlx.train(
        chosen.recipe,
        chosen.folder,
        resume=True,
        allow_config_change=bool(settings),
        waivers=chosen.waivers,
        verify=chosen.verify,
        console=said,
    )
    return result, said.file.getvalue()


def test_it_opens(run):
    trained = kssm_mlx.load(run)
    assert trained.notes["step"] == 12 and trained.model.args.model_type == "kssm"
    assert kssm_mlx.generate(*trained, "the ", max_tokens=4)[0].text


def test_it_is_the_run_that_this_version_would_go_on_with(run):
    """No key that a later version added counts as a change of the recipe."""
    _, said = go_on(run)
    assert "is finished: 12 of 12 steps are done" in said and "change" not in said.split("checking")[0]


def test_it_goes_on(run):
    result, _ = go_on(run, "train.steps=14")
    assert result.step == 14
    assert [row["step"] for row in read_metrics(run) if row["kind"] == "train"][-3:] == [12, 13, 14]


def test_it_is_reported_and_compared(run, tmp_path):
    written = report(run)
    assert {path.name for path in written} >= {"card.md", "loss.png"}
    other = shutil.copytree(OLD, tmp_path / "other")
    recipe = read_recipe(other)
    recipe["model"]["kappa"] = 0.0
    (other / "recipe.json").write_text(json.dumps(recipe))
    (said,) = state_claims([run, other])
    assert said.startswith("other against run-0.1.0, nats/token: ")


@pytest.mark.parametrize(
    "value", [None, 3, {"model_type": ["kssm"]}, {"model_type": "kssm", "d_model": "x" * 9000}]
)
def test_without_a_configuration_it_is_refused_in_one_line(run, value):
    """Four commands ended with a KeyError."""
    recipe = json.loads((run / RECIPE).read_text()) | {"configuration": value}
    if value is None:
        del recipe["configuration"]
    (run / RECIPE).write_text(json.dumps(recipe))
    with pytest.raises(KssmError) as refused:
        kssm_mlx.load(run)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
