"""`simulate` measures what theory says, and refuses what it cannot simulate."""

import math

import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.oscillators.cases import CASES
from kssm_mlx.oscillators.simulate import LARGEST, parse_couplings, prepare, simulate

pytestmark = pytest.mark.usefixtures("uncompiled")  # these runs are shorter than a compilation


@pytest.mark.parametrize(
    "model, options, tolerance",
    [
        ("mean-field", {"K": (3.0,), "time": 20.0}, 0.02),
        ("mean-field", {"K": (3.0,), "time": 20.0, "method": "strang"}, 0.02),
        ("sakaguchi", {"lag": 0.3, "time": 20.0}, 0.02),
        ("triadic", {"time": 15.0}, 0.06),
        ("noisy", {"K": (3.0,), "time": 10.0}, 0.03),
        ("inertial", {"K": (2.0,), "time": 30.0}, 0.01),
        ("sphere", {"K": (1.0,), "time": 40.0}, 0.06),
    ],
)
def test_measures_the_theory(model, options, tolerance):
    """N = 500: every row within the finite-N tolerance of its closed form."""
    result = simulate(prepare(model, n=500, **options))
    assert [row.start for row in result.rows] == list(CASES[model].starts)
    for row in result.rows:
        assert pytest.approx(row.theory, abs=tolerance) == row.R
    assert result.R.shape == (len(result.time), len(result.rows))
    assert result.phases.shape[:2] == (len(result.rows), 500)


def test_sweep_has_a_row_per_coupling_and_a_curve():
    result = simulate(prepare(K=parse_couplings("0:4:5"), n=200, time=20.0, dt=0.1))
    assert [row.K for row in result.rows] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert result.rows[0].R < 0.3 < result.rows[-1].R
    assert result.thresholds == {"K_c": 1.0}
    curve = result.curves(np.array([0.5, 2.0]))["random"]
    np.testing.assert_allclose(curve, [0, math.sqrt(0.5)])


def test_same_seed_same_numbers():
    runs = [simulate(prepare("noisy", n=50, time=1.0, seed=s)).R for s in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_no_closed_form_is_said_not_made_up():
    row = simulate(prepare("sakaguchi", distribution="uniform", n=50, time=1.0)).rows[0]
    assert math.isnan(row.theory)
    assert row.cells()[-2:] == ("no closed form", "")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "men-field"}, "did you mean 'mean-field'"),
        ({"lag": 0.3}, "does not read lag; drop it or use model sakaguchi"),
        ({"n": 1}, "n must be at least 2"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"dt": 2.0, "time": 1.0}, "at most the time 1"),
        ({"time": math.nan}, "time must be a positive number"),
        ({"width": -1.0}, "width of a frequency distribution must be > 0"),
        ({"distribution": "lorenzian"}, "distribution must be lorentzian or"),
        ({"model": "sphere", "distribution": "uniform"}, "must be gaussian in model 'sphere'"),
        ({"model": "sphere", "method": "kick"}, "use rk4"),
        ({"model": "noisy", "noise": -0.1}, "noise must be 0 or a positive number"),
        ({"K": (math.inf,)}, "K must be finite numbers"),
        ({"seed": -1}, "seed must be between 0"),
    ],
)
def test_refuses_what_cannot_be_simulated(options, message):
    with pytest.raises(ConfigError, match=message):
        prepare(**options)


@pytest.mark.parametrize("text", ["x", "0:4", "0:4:1", "0:4:2:3", "0:4:2.5", "0:4:5000", ""])
def test_refuses_couplings_it_cannot_read(text):
    with pytest.raises(ConfigError, match="K must be a number or FIRST:LAST:COUNT"):
        parse_couplings(text)


def test_what_theory_says_at_the_edges():
    """No coupling, no order; and with noise only identical oscillators have a closed form."""
    assert CASES["mean-field"].steady(prepare(distribution="identical"), 0.0) == {"random": 0.0}
    assert CASES["mean-field"].steady(prepare(distribution="identical"), 0.1) == {"random": 1.0}
    spread = {"distribution": "lorentzian", "width": 0.5}
    noisy = prepare("noisy", **spread)
    assert math.isnan(CASES["noisy"].steady(noisy, 3.0)["random"])
    quiet = CASES["noisy"].steady(prepare("noisy", noise=0.0, **spread), 3.0)
    assert quiet == CASES["mean-field"].steady(prepare(**spread), 3.0)


def test_the_largest_that_is_simulated():
    assert len(parse_couplings("0:1:1000")) == 1000
    assert prepare(n=LARGEST, K=(1.0,), model="mean-field").n == LARGEST
    with pytest.raises(ConfigError, match=f"are more than {LARGEST:,}; take --n {LARGEST}"):
        prepare(n=LARGEST + 1, K=(1.0,), model="mean-field")
