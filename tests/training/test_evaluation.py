"""Evaluation: exact numbers with their errors, deterministic, and the worth of context measured exactly."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from kssm_mlx.errors import ConfigError, DataError
from kssm_mlx.training.evaluation import context_gain, evaluate, make_evaluator
from kssm_mlx.training.losses import cross_entropy, token_nats
from tests.support.tiny_model import VOCAB, TinyModel, random_tokens


def one_byte(targets):
    return 1.0


def windows(batches: int = 2, rows: int = 4, resets=None) -> list:
    return [(np.array(random_tokens(rows, 9, seed=i)), resets) for i in range(batches)]


@pytest.fixture
def evaluator():
    model = TinyModel()
    score = make_evaluator(model, compile=False)
    return model, lambda data, per=1.0: score(model.parameters(), data, lambda targets: per)


def test_the_mean_is_that_of_all_tokens_and_the_errors_those_of_windows(evaluator):
    model, score = evaluator
    row_nats, hits = [], 0
    for tokens, _ in windows():
        for row in mx.array(tokens):
            logits = model.forward(row[None, :-1]).logits
            row_nats.append(cross_entropy(logits, row[None, 1:])[0].item() / 8)
            hits += mx.sum(mx.argmax(logits[0], axis=-1) == row[1:]).item()
    result = score(windows(), 2.5)
    mean, se = np.mean(row_nats), np.std(row_nats, ddof=1) / math.sqrt(8)
    assert result == {
        "nats_per_token": pytest.approx(mean, rel=1e-6),
        "se": pytest.approx(se, rel=1e-5),
        "perplexity": pytest.approx(math.exp(mean), rel=1e-6),
        "perplexity_se": pytest.approx(math.exp(mean) * se, rel=1e-5),
        "bits_per_byte": pytest.approx(mean / math.log(2) / 2.5, rel=1e-6),
        "accuracy": pytest.approx(hits / 64),
        "tokens": 64,
        "windows": 8,
    }


def test_labels_are_scored_at_the_place_that_was_read(evaluator):
    """Labels that are the next tokens give the numbers of the next tokens."""
    _, score = evaluator
    labelled = [(np.stack([t[:, :-1], t[:, 1:]], axis=1), resets) for t, resets in windows()]
    assert score(labelled) == score(windows())
    asked = np.stack([np.ones(8, bool), np.arange(8) < 4])
    assert score([(np.where(asked, t, -2), None) for t, _ in labelled])["tokens"] == 32


def test_what_context_is_worth_to_labels():
    model = TinyModel()
    labelled = [(np.stack([t[:, :-1], t[:, 1:]], axis=1), resets) for t, resets in windows()]
    assert context_gain(model, labelled, compile=False) == context_gain(model, windows(), compile=False)


def test_targets_below_zero_are_read_and_not_scored(evaluator):
    """A row whose targets t >= 4 count: as the same row scored whole, cut to those targets."""
    model, score = evaluator
    tokens = np.array(random_tokens())
    hidden = tokens.copy()
    hidden[0, 1:4] = -2 - tokens[0, 1:4]
    logits, targets = model.forward(mx.array(tokens[:, :-1])).logits, mx.array(tokens[:, 1:])
    nats = np.array(token_nats(logits, targets))
    result = score([(hidden, None)])
    assert result["tokens"] == 29
    assert result["nats_per_token"] == pytest.approx((nats[0, 3:].sum() + nats[1:].sum()) / 29, rel=1e-6)
    with pytest.raises(DataError, match="no target of these windows is scored"):
        score([(np.where(np.arange(9) > 0, -2 - tokens, tokens), None)])


def test_the_batch_size_of_the_windows_does_not_matter(evaluator):
    _, score = evaluator
    tokens = np.concatenate([tokens for tokens, _ in windows()])
    one_by_one = score([(mx.array(tokens[i : i + 1]), None) for i in range(8)])
    assert one_by_one["nats_per_token"] == pytest.approx(score([(tokens, None)])["nats_per_token"], rel=1e-6)


def test_compiled_twice_gives_the_same_numbers():
    assert evaluate(TinyModel(), windows(), one_byte) == evaluate(TinyModel(), windows(), one_byte)


def test_the_parameters_are_an_argument_and_the_model_stays_as_it_is():
    model = TinyModel()
    before = np.array(model.head.weight)
    zero = tree_map(mx.zeros_like, model.parameters())
    result = make_evaluator(model, compile=False)(zero, windows(), one_byte)
    assert result["nats_per_token"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert np.array_equal(before, np.array(model.head.weight))


def test_resets_reach_the_model(evaluator):
    _, score = evaluator
    resets = np.zeros((4, 8), bool)
    without = score(windows(resets=resets))
    assert without["nats_per_token"] == pytest.approx(score(windows())["nats_per_token"], rel=1e-6)
    resets[:, 4] = True
    assert score(windows(resets=resets))["nats_per_token"] != without["nats_per_token"]


def test_a_memoryless_model_gains_exactly_nothing_from_context():
    gain = context_gain(TinyModel(memory=False), windows(), compile=False)
    assert gain["context_gain"] == pytest.approx(0, abs=1e-6)
    assert gain["context_gain_se"] == pytest.approx(0, abs=1e-6)


def test_context_gain_is_the_difference_to_a_reset_at_every_token(evaluator):
    model, score = evaluator
    gain = context_gain(model, windows(), compile=False)
    cut = score(windows(resets=np.ones((4, 8), bool)))["nats_per_token"]
    full = score(windows())["nats_per_token"]
    assert gain["nats_one_token"] == pytest.approx(cut, rel=1e-6)
    assert gain["context_gain"] == pytest.approx(cut - full, abs=1e-6)
    assert abs(gain["context_gain"]) > 1e-2 and gain["context_gain_se"] > 0


def test_no_window_and_a_padded_window_are_refused(evaluator):
    _, score = evaluator
    with pytest.raises(ConfigError, match="no window to evaluate"):
        score([])
    tokens = np.array(random_tokens())
    tokens[1, 7:] = -1
    with pytest.raises(DataError, match="has padding"):
        score([(tokens, None)])
