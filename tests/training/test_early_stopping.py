"""The rules on validation curves, each on a curve that shows it and on one that must not."""

import numpy as np
import pytest

from kssm_mlx.training.early_stopping import (
    Advice,
    Curve,
    advise,
    improvement_interval,
    list_improvements,
    list_unresolved,
    lower_envelope,
    overfits,
)
from kssm_mlx.training.steering_sections import Patience

STEADY = Patience()


def curve(held_out, training=None, every=100, planned=10_000) -> Curve:
    held_out = tuple(map(float, held_out))
    training = tuple(np.linspace(5, 1, len(held_out))) if training is None else tuple(training)
    return Curve(tuple(every * (i + 1) for i in range(len(held_out))), held_out, training, planned)


def decaying(n: int, floor: float = 2.0) -> np.ndarray:
    return floor + 3 * np.exp(-np.arange(n) / 5)


def action(c: Curve, cuts=(), options=STEADY) -> tuple[str, str]:
    return advise(c, cuts, options)[:2]


def test_a_falling_curve_goes_on_at_every_point():
    whole = 2 + 3 * 0.97 ** np.arange(60)
    for n in range(1, 61):
        assert action(curve(whole[:n])) == ("CONTINUE", "")


def test_improvements_are_counted_from_the_best_and_their_interval_in_the_first_fifth():
    assert list_improvements((5, 4.99, 4, 4.5, 3.9), 0.005) == [0, 2, 4]
    c = curve([5, 5, 4, 4, 3, *[3] * 15, 2.5, 2.4], planned=2_000)  # at 100, 300 and, late, 500, 2100, 2200
    assert improvement_interval(c, 0.005) == 200
    assert improvement_interval(curve([5.0]), 0.005) is None


def test_patience_spent_cuts_the_rate_and_after_the_last_cut_stops():
    flat = curve([*decaying(10), *[2.45] * 5])  # the last improvement is at 1100, their interval 100
    assert action(flat) == ("CUT", "T7")
    assert action(flat, cuts=(1000,)) == ("CUT", "T7")  # an improvement has followed that cut
    assert action(flat, cuts=(1200,)) == ("CONTINUE", "")  # patient anew
    later = curve([*decaying(10), *[2.45] * 13])
    assert action(later, cuts=(1500,)) == ("CUT", "T7")
    assert action(later, cuts=(1500, 2000)) == ("WAIT", "T9")
    assert action(later, cuts=(1300, 1400)) == ("STOP", "T8")
    assert "learning rate times 0.6" in advise(flat, (), STEADY).reason


def test_a_fifth_of_the_run_without_gain_is_convergence_whatever_the_cuts():
    long = curve([*decaying(10), *[2.45] * 22])
    assert action(long, cuts=(3000,)) == ("STOP", "T5")
    assert action(long, cuts=(3000,), options=Patience(plateau=0.3)) == ("WAIT", "T9")


def test_a_rise_while_training_falls_is_overfitting_and_a_rise_of_both_is_not():
    rising = [3.0, 2.5, 2.0, 2.2, 2.3]
    assert action(curve(rising)) == ("STOP", "T4")
    assert not overfits(curve(rising, training=[3, 2.5, 2.0, 2.2, 2.3]), 0.05)
    assert not overfits(curve([3.0, 2.5, 2.0, 2.3]), 0.05)  # once is a tooth
    assert not overfits(curve([3.0, 2.5, 2.0, 2.05, 2.08]), 0.05)


@pytest.mark.parametrize(
    "late, expected",
    [([3.9, 3.5, 4.2, 3.4, 4.1], "falling"), ([4.2, 3.97, 4.3, 3.98, 4.1], "flat"), ([4.4] * 5, "rising")],
)
def test_a_sawtooth_is_judged_by_its_lower_envelope(late, expected):
    assert lower_envelope((4.6, 4.0, 4.5, 4.02, 4.4, *late), 0.01) == expected
    assert lower_envelope((4.6, 4.0), 0.01) == "falling"  # nothing to compare with


def test_scatter_above_the_improvement_is_told_apart_from_a_steady_fall():
    assert list_unresolved(curve([2.0, 2.1, 1.95, 2.08, 1.99]))
    assert not list_unresolved(curve([2.5, 2.41, 2.29, 2.21, 2.1]))
    assert not list_unresolved(curve([2.0, 2.1]))
    noisy = [3.0, 2.4, *[2.4, 2.401, 2.4, 2.403, 2.4] * 2]
    assert action(curve(noisy), options=Patience(intervals=100)) == ("WAIT", "T9")


def test_advice_is_words_with_a_rule():
    assert advise(curve([*decaying(10), *[2.45] * 22]), (), STEADY) == Advice(
        "STOP", "T5", "no improvement for more than 20% of the run: converged"
    )


def test_what_lies_on_a_limit_is_within_it():
    flat = [*decaying(3), *[2.45] * 4]  # the last improvement is at 400 of 700
    patient = Patience(intervals=100)
    assert advise(curve(flat, planned=1_500), (), patient).rule != "T5"
    assert advise(curve(flat, planned=1_499), (), patient).rule == "T5"
    late = [5, 4, 4, 4, 3]  # at 100, 200 and 500: the last is in the first fifth of 2,500 steps, not of 2,499
    assert improvement_interval(curve(late, planned=2_500), 0.005) == 200
    assert improvement_interval(curve(late, planned=2_499), 0.005) == 100
    assert lower_envelope((4.0,) * 5 + (5.0,) * 5, 0.25) == "flat"
    assert lower_envelope((4.0,) * 5 + (5.1,) * 5, 0.25) == "rising"
    assert lower_envelope((4.0,) * 5 + (3.0,) * 5, 0.25) == "flat"
    assert list_improvements((4.0, 2.0), 0.5) == [0]
    assert not overfits(curve([2.0, 3.0, 3.0]), 0.5)
    assert not overfits(curve([2.0, 3.1, 3.1], training=[1, 2, 1]), 0.5)


def test_a_cut_at_the_step_of_an_improvement_is_spent_on_it():
    flat = curve([*decaying(10), *[2.45] * 5])  # the last improvement is at 1100
    assert action(flat, cuts=(1100,), options=Patience(cuts=1)) == ("CUT", "T7")
    later = curve([*decaying(10), *[2.45] * 6])
    assert action(later, cuts=(1101,), options=Patience(cuts=1)) == ("STOP", "T8")


def test_the_envelope_looks_at_ten_evaluations_and_no_further_back():
    assert lower_envelope((1.0, *[4.0] * 10), 0.01) == "flat"
    assert lower_envelope((*[4.0] * 5, 1.0, *[4.0] * 4, 1.0), 0.01) == "flat"
    assert lower_envelope((*[4.0] * 5, 1.0, *[4.0] * 6), 0.01) == "rising"  # the 1 is before the last five
    assert lower_envelope((4.0, *[4.0] * 5), 0.01) == "flat"  # as many before them as there are


def test_scatter_is_of_as_many_points_as_are_free():
    losses = (2.0, 2.1, 1.95, 2.08, 1.99)
    line = np.polyval(np.polyfit(np.arange(5), losses, 1), np.arange(5))
    scatter = float(np.sqrt(np.sum((losses - line) ** 2) / 3))
    assert np.polyfit(np.arange(5), losses, 1)[0] == pytest.approx(-0.004)
    # The same scatter about lines that fall by a little less and a little more than it.
    for factor, unresolved in ((0.99, True), (1.01, False)):
        tilted = losses - line + 9 - factor * scatter * np.arange(5)
        assert list_unresolved(curve(tilted)) is unresolved


def test_a_rise_is_seen_from_the_first_evaluation_on_and_as_long_as_it_lasts():
    for held_out in ([2.0, 2.2, 2.3], [2.0, 2.2, 2.3, 2.4, 2.5]):
        assert overfits(curve(held_out), 0.05)
    assert overfits(curve([2.0, 2.2, 2.3], training=[3, 3, 2]), 0.05)


def test_where_the_first_fifth_has_no_interval_the_first_two_improvements_have():
    c = curve([5, 4, 4, 3], planned=500)  # improvements at 100, 200 and 400; the first fifth ends at 100
    assert improvement_interval(c, 0.005) == 100
