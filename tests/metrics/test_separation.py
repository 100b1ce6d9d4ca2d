"""The ratio of spread to separation by hand, against a loop, and where it has no value."""

import math

import numpy as np
import pytest

from kssm_mlx.metrics.separation import measure_spread

rng = np.random.default_rng(0)
LINE = np.array([[0.0, 0.0], [2.0, 0.0]])
TWO = np.array([0, 1])


def test_by_hand():
    """Means 2 apart: half of that is 1. What lies across the line between them blurs nothing."""
    vectors = np.array([[0.5, 9.0], [-0.5, -9.0], [2.5, 4.0]])
    assert measure_spread(LINE, TWO, vectors, np.array([0, 0, 1])) == pytest.approx(0.5)
    assert measure_spread(LINE, TWO, LINE, TWO) == 0


def test_at_one_a_vector_is_as_near_to_the_other_mean():
    between = np.array([[1.0, 3.0], [1.0, -3.0]])
    assert measure_spread(LINE, TWO, between, TWO) == pytest.approx(1)


def test_it_is_the_loop_on_paper_and_has_no_unit():
    reference, classes = rng.normal(size=(40, 3)), rng.integers(0, 4, 40)
    vectors, of = rng.normal(size=(25, 3)), rng.integers(0, 4, 25)
    means = {c: reference[classes == c].mean(axis=0) for c in range(4)}
    squares = []
    for y in range(4):
        part = []
        for v in vectors[of == y]:
            for c in range(4):
                if c != y:
                    away = means[c] - means[y]
                    part.append((np.dot(v - means[y], away) / (np.dot(away, away) / 2)) ** 2)
        squares.append(np.mean(part))
    found = measure_spread(reference, classes, vectors, of)
    assert found == pytest.approx(math.sqrt(np.mean(squares)))
    assert measure_spread(7 * reference, classes, 7 * vectors, of) == pytest.approx(found)


def test_classes_without_a_mean_are_left_out():
    vectors = np.array([[0.5, 0.0], [50.0, 0.0]])
    assert measure_spread(LINE, TWO, vectors, np.array([0, 2])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "reference, classes",
    [
        (LINE, np.array([0, 0])),  # one class
        (np.zeros((2, 2)), TWO),  # two of one mean
        (LINE, np.array([5, 6])),  # of other classes
    ],
)
def test_where_nothing_is_separated_there_is_no_ratio(reference, classes):
    assert math.isnan(measure_spread(reference, classes, LINE, np.array([0, 0])))
