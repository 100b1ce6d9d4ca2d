"""Curves side by side: no two look alike, and their spreads can be told apart."""

from typing import get_args

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from kssm_mlx.experiments.decide import Word
from kssm_mlx.reports.experiment import LOOKS
from kssm_mlx.reports.style import MOST_BANDS, Curve, draw_curve, look_of_curve


def test_no_two_curves_look_alike():
    looks = [tuple(look_of_curve(i).values()) for i in range(64)]
    assert len({*looks}) == 64
    # Nine arms in eight colours: without a line, the ninth has another marker than the first.
    assert look_of_curve(0)["color"] == look_of_curve(8)["color"]
    assert look_of_curve(0)["marker"] != look_of_curve(8)["marker"]


def drawn(n: int, log: bool):
    ax, x = Figure().add_subplot(), [64, 128, 512]
    for i in range(n):
        draw_curve(ax, Curve(x, np.full(3, 0.5), np.full(3, 0.4), np.full(3, 0.6)), i, n, f"arm {i}", log=log)
    return ax


def test_the_spread_of_few_curves_is_a_band():
    ax = drawn(MOST_BANDS, log=False)
    assert [isinstance(c, PolyCollection) for c in ax.collections] == [True] * MOST_BANDS
    assert all(np.array_equal(line.get_xdata(), [64, 128, 512]) for line in ax.lines)


@pytest.mark.parametrize("log", [False, True])
def test_the_spreads_of_many_curves_stand_side_by_side(log):
    n = MOST_BANDS + 6
    ax = drawn(n, log)
    assert all(isinstance(c, LineCollection) for c in ax.collections)
    places = np.array([line.get_xdata() for line in ax.lines])  # n, 3
    bars = np.array([[part[0, 0] for part in c.get_segments()] for c in ax.collections])
    np.testing.assert_array_equal(places, bars)
    assert (np.diff(places, axis=0) > 0).all()  # in their order
    assert (places[-1, :-1] < places[0, 1:]).all()  # and none among those of the next length
    middle = np.exp(np.log(places).mean(0)) if log else places.mean(0)
    np.testing.assert_allclose(middle, [64, 128, 512])


def test_each_verdict_has_its_own_colour_and_marker():
    assert LOOKS.keys() == {*get_args(Word)}
    for part in zip(*LOOKS.values(), strict=True):
        assert len({*part}) == len(LOOKS)
