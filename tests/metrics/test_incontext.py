import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.errors import DataError
from kssm_mlx.metrics.incontext import ALPHA, code_lengths, in_context


def counted(sequence, V, order, stride):
    """The coder as its formula reads, one token after the other."""
    nats = []
    for t in range(len(sequence)):
        context = [sequence[t - i * stride] for i in range(1, order + 1) if t >= order * stride]
        earlier = [
            sequence[u]
            for u in range(order * stride, t)
            if [sequence[u - i * stride] for i in range(1, order + 1)] == context
        ]
        p = (earlier.count(sequence[t]) + ALPHA / V) / (len(earlier) + ALPHA) if context else 1 / V
        nats.append(-math.log(p))
    return nats


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=14, max_size=14), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_a_coder_is_its_formula_and_rows_do_not_meet(sequences, order, stride):
    got = code_lengths(np.array(sequences), 3, order, stride)
    np.testing.assert_allclose(got, [counted(s, 3, order, stride) for s in sequences])


def interleaved(n, L, V, rng, broken=False):
    """Two streams in turn, each periodic with period 2..7 (broken: each i.i.d.)."""
    sequences = np.empty((n, L + 1), np.int64)
    for row in sequences:
        for slots in (row[0::2], row[1::2]):
            pattern = rng.integers(0, V, slots.size if broken else rng.integers(2, 8))
            slots[:] = np.resize(pattern, slots.size)
    return sequences


def test_interleaved_streams_are_found_by_stride_two():
    best = in_context(interleaved(300, 128, 4096, np.random.default_rng(0)), 4096)
    assert (best.order, best.stride) == (1, 2)
    assert best.code_length == pytest.approx(0.666, abs=0.04)
    assert best.gain == pytest.approx(0.92, abs=0.005)
    assert best.code_lengths[2, 1] == pytest.approx(2.165, abs=0.06)


def test_orders_one_to_three_are_tried_at_strides_one_to_four():
    found = in_context(np.zeros((1, 20), np.int64), 2)
    assert found.code_lengths.keys() == set(itertools.product((1, 2, 3), (1, 2, 3, 4)))


def test_independent_streams_have_no_gain():
    best = in_context(interleaved(300, 128, 4096, np.random.default_rng(0), broken=True), 4096)
    assert abs(best.gain) < 0.001


def test_only_scored_places_count():
    sequences = np.random.default_rng(0).integers(0, 50, (40, 60))
    sequences[:, 30:] = 7
    late = in_context(sequences, 50, np.arange(60) >= 40)
    early = in_context(sequences, 50, np.arange(60) < 30)
    assert late.gain > 0.95 and early.gain < 0.01


def test_nothing_to_score_is_refused():
    with pytest.raises(DataError, match="vocabulary of 5 and 0 scored tokens leave nothing to predict"):
        in_context(np.zeros((2, 8), int), 5, np.zeros(8, bool))
    with pytest.raises(DataError, match="vocabulary of 1"):
        in_context(np.zeros((2, 8), int), 1)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(DataError, match="ids run from 0 to 9; expected 0 to 4"):
        in_context(np.array([[0, 1, 9]]), 5)
