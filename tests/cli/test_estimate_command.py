"""`kssm estimate` and `kssm train --dry-run`: what they print, refuse and leave alone."""

import json

import pytest

from kssm_mlx.training.budget import fit
from tests.support.cli_fakes import kssm, refused
from tests.support.exported import exported, tiny
from tests.support.small_runs import sentences

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(sentences(300, 0))
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[data]\nsource = "file:{tmp_path / "text.txt"}"\n[model]\nfamily = "gru"\nsize = "xs"\n'
        "[train]\nsteps = 30\nbatch_size = 4\ncontext = 16\n[smoke]\ntrain = { steps = 5 }\n"
    )
    return path


def test_a_recipe_is_estimated_with_a_peak_and_a_time(recipe):
    result = kssm("estimate", recipe)
    assert result.exit_code == 0, result.output
    for said in (
        "parameters, trained",
        "peak of memory",
        "of 4 rows",
        "checkpoints on disk",
        "the predicted peak fits",
    ):
        assert said in result.stdout


def test_json_has_bytes_and_settings_count(recipe):
    found = json.loads(kssm("estimate", recipe, "--json", "--no-measure").stdout)
    assert found["optimizer"] == 8 * found["parameters"]["trained"]
    assert found["peak"] is None and found["measured"] == []
    wider = json.loads(
        kssm("estimate", recipe, "--json", "--no-measure", "--set", "model.d_model=256").stdout
    )
    assert wider["weights"] > found["weights"]


def test_a_named_machine_is_on_paper(recipe):
    said = kssm("estimate", recipe, "--machine", "m2 ultra 64", "--no-measure").stdout
    assert "M2 Ultra 64 GB, on paper: Apple" in said and "800 GB/s" in said and "not measured" in said


def test_weights_are_estimated_and_take_no_settings(tmp_path):
    folder = exported(tiny("mamba"), tmp_path / "weights")
    result = kssm("estimate", folder)
    assert result.exit_code == 0, result.output
    assert "state of a row" in result.stdout and "optimizer" not in result.stdout
    assert "--set and --smoke change one" in refused(kssm("estimate", folder, "--set", "train.steps=2"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("defalt",), "did you mean 'default'"),
        (("default", "--machine", "M9 64"), "no machine 'M9 64'"),
        (("default", "--set", "model.widht=3"), "widht"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(arguments, said):
    assert said in refused(kssm("estimate", *arguments))


def test_a_dry_run_prints_recipe_and_estimate_and_starts_nothing(recipe, tmp_path):
    folder = tmp_path / "run"
    result = kssm("train", recipe, "--dry-run", "--out", folder, "--set", "train.steps=7")
    assert result.exit_code == 0, result.output
    assert "\ntrain.steps=7\n" in result.stdout and '\nmodel.family="gru"\n' in result.stdout
    assert "peak of memory" in result.stdout and f"would be written to {folder}" in result.stdout
    assert not folder.exists()


def test_the_smoke_form_is_estimated(recipe):
    assert "5 x 64 tokens" in kssm("estimate", recipe, "--smoke", "--no-measure").stdout


def test_a_dry_run_of_what_cannot_fit_ends_as_the_run_would(recipe, monkeypatch):
    monkeypatch.setattr(fit, "there_is_memory", lambda: 10**5)
    result = kssm("train", recipe, "--dry-run")
    assert result.exit_code == 2 and result.stderr.startswith("kssm: this run needs at least")
    assert result.stderr.count("\n") == 1 and "optimizer" in result.stdout
    listed = kssm("estimate", recipe)
    assert listed.exit_code == 0 and "this run needs at least" in listed.stdout
