"""What the Tab key offers, as bash asks for it; a line that cannot be understood is silent."""

import pytest
from typer.testing import CliRunner

from kssm_mlx.cli import app
from kssm_mlx.experiments.design import list_experiments
from kssm_mlx.training.recipe import list_failures, list_shipped


def offered(line: str) -> list[str]:
    """For the last word of a line, which may be empty."""
    words = line.split(" ")
    asked = {"_KSSM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(app, [], prog_name="kssm", env=asked)
    assert result.exit_code == 0 and result.stderr == ""
    return result.stdout.split()


@pytest.mark.parametrize("command", ["train", "config", "estimate", "sweep", "verify"])
def test_recipes_are_offered_where_one_is_expected(command):
    assert offered(f"kssm {command} ") == [*list_shipped()]
    assert offered(f"kssm {command} mq") == ["mqar"]
    assert offered(f"kssm {command} failures/") == [*list_failures()]
    assert offered(f"kssm {command} runs/x") == []  # and the shell offers files


def test_experiments_are_offered():
    assert offered("kssm experiment run ") == [*list_experiments()]
    assert offered("kssm experiment run kap") == ["kappa"]


@pytest.mark.parametrize(
    "line, keys",
    [
        ("kssm train default --set train.learning", ["train.learning_rate="]),
        ("kssm train track-a5 --set model.w", ["model.wells="]),
        ("kssm train baseline-mamba --set model.mamba_h", ["model.mamba_head_dim="]),
        ("kssm train --set train.steps=9 mqar --set data.task.pa", ["data.task.pairs="]),
        ("kssm train nothing.toml --set data.tok", ["data.tokenizer="]),
        ("kssm sweep default --grid train.learning", ["train.learning_rate="]),
        ("kssm train phase-mamba --set model.graft.c", ["model.graft.core="]),
        ("kssm train phase-mamba --set model.vocab", []),
    ],
)
def test_keys_of_the_recipe_on_the_line_are_offered(line, keys):
    assert offered(line) == keys


def test_checks_are_offered():
    assert {"C2", "C20"} <= {*offered("kssm verify --explain C2")}
    assert offered("kssm verify --explain X") == []
