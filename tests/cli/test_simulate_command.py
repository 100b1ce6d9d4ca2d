"""`kssm simulate` prints R against theory, saves a picture, and answers nonsense in one line."""

import numpy as np
import pytest
from matplotlib.image import imread

from tests.support.cli_fakes import kssm, refused

QUICK = ["--n", 100, "--time", 4, "--dt", 0.1]
pytestmark = pytest.mark.usefixtures("uncompiled")  # these runs are shorter than a compilation


@pytest.mark.parametrize("model", ["mean-field", "sakaguchi", "triadic", "noisy", "inertial", "sphere"])
def test_prints_theory_and_saves_the_picture(model, tmp_path):
    picture = tmp_path / "one.png"
    result = kssm("simulate", "--model", model, *QUICK, "--out", picture)
    assert result.exit_code == 0, result.output
    assert "R theory" in result.stdout and str(picture) in result.stdout
    assert np.ptp(imread(picture)[..., :3]) > 0.5


def test_sweep_prints_every_coupling(tmp_path):
    result = kssm("simulate", "--K", "1.5:3:4", *QUICK, "--out", tmp_path / "sweep.png")
    assert result.exit_code == 0, result.output
    theory = {"1.5": "0.5774", "2": "0.7071", "2.5": "0.7746", "3": "0.8165"}
    rows = {cells[0]: cells for cells in map(str.split, result.stdout.splitlines()) if len(cells) == 6}
    assert {K: rows[K][4] for K in theory} == theory
    assert "K_c = 1" in result.stdout
    assert (tmp_path / "sweep.png").exists()


def test_three_dimensions_are_a_sphere(tmp_path):
    result = kssm("simulate", "--dimension", 3, "--K", 2, *QUICK, "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("sphere, N = 100, gaussian")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "kuramoto"], "model 'kuramoto' is unknown"),
        (["--dimension", 4], "--dimension 4 of model 'mean-field'; there are 2 for the models of phases"),
        (["--dimension", 3, "--model", "noisy"], "--dimension 3 of model 'noisy'"),
        (["--K", "0:4"], "FIRST:LAST:COUNT such as 0:4:17"),
        (["--lag", 0.2], "does not read lag"),
        (["--method", "rk5"], "did you mean 'rk4'"),
        (["--n", 1], "at least 2 oscillators"),
        (["--out", "picture.jpg"], "give a name that ends in .png"),
        (["--out", "no/such/folder/a.png"], "create that first"),
    ],
)
def test_refuses_in_one_line(options, message):
    assert message in refused(kssm("simulate", *options))


def test_a_refused_target_costs_no_time(tmp_path, monkeypatch):
    """The target is looked at before the first step, so nothing was simulated in vain."""
    from kssm_mlx.oscillators import simulate

    monkeypatch.setattr(simulate, "simulate", lambda setup: pytest.fail("simulated first"))
    refused(kssm("simulate", *QUICK, "--out", tmp_path))
