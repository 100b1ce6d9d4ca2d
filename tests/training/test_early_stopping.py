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
