import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.errors import DataError
from kssm_mlx.metrics.ngrams import bigram_entropy, ngram_ladder

RUNGS = ("unigram", "bigram", "trigram")


def witten_bell(train, context, token, V):
    """The formula of the module's docstring, by counting in Python."""
    if context is None:
        return 1 / V
    k = len(context)
    followers = [x for *c, x in zip(*(train[2 - k + i :] for i in range(k + 1))) if tuple(c) == context]
    lower = witten_bell(train, context[1:] if k else None, token, V)
    t = len(set(followers))
    return (followers.count(token) + t * lower) / (len(followers) + t) if followers else lower


@given(st.data(), st.integers(2, 5))
def test_every_rung_is_the_formula(data, V):
    tokens = st.lists(st.integers(0, V - 1), min_size=3, max_size=25)
    train, validation = data.draw(tokens), data.draw(tokens)
    ladder = ngram_ladder(np.array(train), np.array(validation), V)
    for order, name in enumerate(RUNGS):
        nats = [
            -math.log(witten_bell(train, tuple(validation[t - order : t]), validation[t], V))
            for t in range(2, len(validation))
        ]
        assert ladder[name] == pytest.approx(np.mean(nats))


def test_labels_are_counted_where_they_are_asked_for():
    """The label is whether the token read two places before was 3; elsewhere nothing is asked."""
    rng = np.random.default_rng(0)
    sides = [rng.integers(0, 4, 4000), rng.integers(0, 4, 1000)]
    labels = [np.roll(ids, 2) == 3 for ids in sides]
    asked = [np.where(np.arange(own.size) % 2, own, -1) for own in labels]
    ladder = ngram_ladder(*sides, 4, scored=asked[1] >= 0, labels=tuple(asked))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert ladder["unigram"] == pytest.approx(entropy, abs=0.03)
    assert ladder["bigram"] == pytest.approx(entropy, abs=0.03)
    assert ladder["trigram"] < 0.02  # which reads two tokens
    with pytest.raises(DataError, match="none of the validation tokens"):
        ngram_ladder(*sides, 4, scored=np.zeros(1000, bool), labels=tuple(asked))


def markov(length, V, rng):
    """A chain with one likely successor per token, and its entropy rate."""
    p = np.full((V, V), 0.2 / (V - 1))
    p[np.arange(V), rng.permutation(V)] = 0.8
    ids = [0]
    jumps = rng.random(length)
    cumulative = p.cumsum(axis=1)
    for u in jumps[1:]:
        ids.append(min(V - 1, int(np.searchsorted(cumulative[ids[-1]], u))))
    return np.array(ids), -(0.8 * math.log(0.8) + 0.2 * math.log(0.2 / (V - 1)))


def test_a_markov_chain_is_known_from_one_token():
    ids, rate = markov(40_000, 8, np.random.default_rng(0))
    ladder = ngram_ladder(ids[:30_000], ids[30_000:], 8)
    assert ladder["uniform"] == pytest.approx(math.log(8))
    assert ladder["unigram"] == pytest.approx(math.log(8), abs=0.01)
    assert ladder["bigram"] == pytest.approx(rate, abs=0.02)
    assert ladder["trigram"] == pytest.approx(rate, abs=0.03)
    assert ladder["bigram_entropy"] == pytest.approx(rate, abs=0.02)


def test_uniform_noise_cannot_be_predicted():
    ids = np.random.default_rng(0).integers(0, 16, 20_000)
    ladder = ngram_ladder(ids[:15_000], ids[15_000:], 16)
    for name in RUNGS:
        assert ladder[name] >= math.log(16) - 0.005


def test_the_position_counts_only_where_it_is_asked_for():
    ids = np.random.default_rng(0).integers(0, 16, (2000, 4))
    ids[:, 2] = 7  # a token that the place determines and the token before it does not
    ids = ids.reshape(-1)
    plain = ngram_ladder(ids[:6000], ids[6000:], 16)
    placed = ngram_ladder(ids[:6000], ids[6000:], 16, period=4)
    assert "position_bigram" not in plain
    assert placed["position_bigram"] < placed["bigram"] - 0.3
    assert placed.items() >= plain.items()


def test_a_large_vocabulary_costs_what_occurs():
    ids = np.random.default_rng(0).integers(0, 50_257, 20_000) ** 2 % 50_257
    ladder = ngram_ladder(ids[:15_000], ids[15_000:], 50_257)  # its square would need 20 GB
    assert all(math.isfinite(nats) for nats in ladder.values())


def test_tinyshakespeare_has_its_known_bigram_entropy(shared_text):
    text = np.frombuffer(shared_text.read_bytes(), np.uint8)
    train, validation = text[:1_003_854], text[1_003_854:]
    assert bigram_entropy(train, 256) == pytest.approx(2.4519, abs=5e-5)
    ladder = ngram_ladder(train, validation, 256)
    assert 2.45 < ladder["bigram"] < 2.5 and ladder["trigram"] < 2.1


def test_texts_too_short_to_count_are_refused():
    with pytest.raises(DataError, match="2 training tokens are too few for trigrams; give at least 3"):
        ngram_ladder(np.array([0, 1]), np.array([0, 1, 0]), 2)
    with pytest.raises(DataError, match="0 validation tokens"):
        ngram_ladder(np.array([0, 1, 0]), np.array([]), 2)


@pytest.mark.parametrize("bad", [-1, 3])
def test_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(DataError, match=r"validation tokens run from .* to .*; expected 0 to 2"):
        ngram_ladder(np.array([0, 1, 2]), np.array([0, 1, bad]), 3)


@pytest.mark.parametrize("spread", [1, 2**22, 2**31])
def test_the_size_of_the_vocabulary_does_not_matter(spread):
    """Ids that lie far apart count as ids that do not: three of them once overflowed 64 bits."""
    rng = np.random.default_rng(5)
    train, validation = rng.integers(0, 6, 400), rng.integers(0, 6, 200)
    near = ngram_ladder(train, validation, 6)
    far = ngram_ladder(train * spread, validation * spread, 6 * spread)
    uniform = math.log(6 * spread)
    assert far["uniform"] == pytest.approx(uniform)
    assert far["bigram_entropy"] == pytest.approx(near["bigram_entropy"])
    if spread == 1:
        assert far == near
    else:  # what is not seen shares more of the same small mass
        assert all(near[rung] - 1e-9 <= far[rung] <= uniform for rung in ("unigram", "bigram", "trigram"))


def test_without_a_scored_token_there_is_nothing_to_say():
    with pytest.raises(DataError, match="none of the validation tokens from the third on is scored"):
        ngram_ladder(np.arange(9), np.arange(9), 9, scored=np.arange(9) < 2)
