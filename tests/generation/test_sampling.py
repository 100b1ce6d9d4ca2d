"""Every filter against its definition in numpy: which tokens survive, and with which probabilities."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.generation import Sampling
from kssm_mlx.generation.sampling import apply_filters, min_p, repetition_penalty, sample, top_k, top_p

B, V = 5, 37
LOGITS = np.random.default_rng(0).normal(0, 2, (B, V)).astype(np.float32)
NO_HISTORY = mx.full((B, 4), -1, dtype=mx.int32)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def keep_k(p, k):
    return p >= np.sort(p)[-k]


def keep_mass(p, mass):
    order = np.argsort(-p)
    count = np.searchsorted(np.cumsum(p[order]), mass) + 1
    return np.isin(np.arange(V), order[:count])


def keep_relative(p, share):
    return p >= share * p.max()


@pytest.mark.parametrize(
    "function, reference, values",
    [
        (top_k, keep_k, (1, 5, V)),
        (top_p, keep_mass, (0.05, 0.5, 0.95)),
        (min_p, keep_relative, (0.02, 0.3, 1.0)),
    ],
)
def test_filter_keeps_the_defined_set_and_renormalises(function, reference, values):
    for value in values:
        got = softmax(np.array(function(mx.array(LOGITS), value)))
        for row, p in zip(got, softmax(LOGITS)):
            kept = reference(p, value)
            np.testing.assert_array_equal(row > 0, kept)
            np.testing.assert_allclose(row, np.where(kept, p, 0) / p[kept].sum(), rtol=2e-5)


def test_top_k_beyond_the_vocabulary_keeps_everything():
    np.testing.assert_array_equal(np.array(top_k(mx.array(LOGITS), V + 10)), LOGITS)


def test_ties_at_a_threshold_are_all_kept():
    flat = mx.zeros((1, 4))
    assert (np.array(top_k(flat, 2)) == 0).all()
    assert (np.array(top_p(flat, 0.3)) == 0).all()


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    history = np.array([[-1, -1, 3, 7], [-1, 0, 0, 0], [-1, -1, -1, -1], [1, 2, 3, 4], [36, 36, 5, 6]])
    expected = LOGITS.copy()
    for row, seen in zip(expected, history):
        for token in {t for t in seen if t >= 0}:
            row[token] = row[token] / 1.5 if row[token] > 0 else row[token] * 1.5
    got = repetition_penalty(mx.array(LOGITS), mx.array(history.astype(np.int32)), 1.5)
    np.testing.assert_allclose(np.array(got), expected, rtol=1e-6)


def test_filters_compose_in_the_documented_order():
    settings = Sampling(temperature=0.7, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
    history = mx.array(np.tile(np.arange(4, dtype=np.int32), (B, 1)))
    by_hand = repetition_penalty(mx.array(LOGITS), history, 1.3) / 0.7
    by_hand = min_p(top_p(top_k(by_hand, 12), 0.9), 0.05)
    got = apply_filters(mx.array(LOGITS), history, settings)
    np.testing.assert_array_equal(np.array(got), np.array(by_hand))
    assert 1 < np.isfinite(np.array(got)[0]).sum() < 12


def test_temperature_R_is_each_rows_own_coherence():
    """1.5 - 0.5 R of the last token, R averaged over blocks and groups."""
    R = np.random.default_rng(1).uniform(size=(2, B, 3, 4)).astype(np.float32)
    trace = {"block00/R": mx.array(R[0]), "block01/R": mx.array(R[1]), "block01/psi": mx.ones((B, 3, 4))}
    got = apply_filters(mx.array(LOGITS), NO_HISTORY, Sampling(temperature="R", top_k=5), trace)
    T = 1.5 - 0.5 * R[:, :, -1].mean(axis=(0, 2))
    np.testing.assert_allclose(got, top_k(mx.array(LOGITS / T[:, None]), 5), rtol=1e-5)


def test_temperature_R_needs_a_model_with_R():
    with pytest.raises(ConfigError, match="this model has none; give a number"):
        apply_filters(mx.array(LOGITS), NO_HISTORY, Sampling(temperature="R"), {"block00/state": mx.ones(1)})


def test_greedy_takes_the_largest_and_spends_no_randomness():
    keys = mx.stack([mx.random.key(0)] * B)
    tokens, after = sample(mx.array(LOGITS), NO_HISTORY, keys, Sampling())
    np.testing.assert_array_equal(np.array(tokens), LOGITS.argmax(-1))
    np.testing.assert_array_equal(np.array(after), np.array(keys))


def test_draws_follow_the_distribution():
    n, temperature = 4000, 1.7
    logits = mx.broadcast_to(mx.array(LOGITS[:1, :6]), (n, 6))
    keys = mx.stack([mx.random.key(i) for i in range(n)])
    history = mx.full((n, 4), -1, dtype=mx.int32)
    tokens, _ = sample(logits, history, keys, Sampling(temperature=temperature))
    counts = np.bincount(np.array(tokens), minlength=6)
    p = softmax(LOGITS[0, :6] / temperature)
    chi2 = ((counts - n * p) ** 2 / (n * p)).sum()
    assert chi2 < 20.5  # the 0.999 quantile of chi-squared with 5 degrees of freedom; seeds are fixed


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": "warm"},
        {"top_k": -2},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"repetition_window": 0},
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(bad):
    (name, value), *_ = bad.items()
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be"):
        Sampling(**bad)
