import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.data.shards import Shards
from kssm_mlx.errors import DataError
from kssm_mlx.metrics import ngrams
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
    assert bigram_entropy(ids[:30_000], 8) == pytest.approx(rate, abs=0.02)


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
    if spread == 1:
        assert far == near
    else:  # what is not seen shares more of the same small mass
        assert all(near[rung] - 1e-9 <= far[rung] <= uniform for rung in ("unigram", "bigram", "trigram"))


def test_without_a_scored_token_there_is_nothing_to_say():
    with pytest.raises(DataError, match="none of the validation tokens from the third on is scored"):
        ngram_ladder(np.arange(9), np.arange(9), 9, scored=np.arange(9) < 2)


def ladder_at_once(train, validation, V, period=None, scored=None, labels=None):
    """As `ngram_ladder`, with all n-grams of the training tokens sorted at once."""
    asked_for = [np.asarray(side, np.int64) for side in labels or (train, validation)]
    sides = [np.asarray(side, np.int64) for side in (train, validation)]
    counts = slice(None) if scored is None else scored[2:]
    lower = np.full(sides[1].size - 2, 1 / V)
    ladder = {"uniform": math.log(V)}

    def rung(order, period):
        (counted, pairs), (asked, questions) = (
            contexts_at_once(*side, order, period, V) for side in zip(sides, asked_for, strict=True)
        )
        known = asked_for[0][2:] >= 0
        found, n = np.unique(pairs[known], return_counts=True)
        n_cx = np.where(
            np.isin(questions, found), n[np.searchsorted(found, questions).clip(max=n.size - 1)], 0
        )
        n_c = np.array([(counted[known] == c).sum() for c in asked])
        t_c = np.array([(found // V == c).sum() for c in asked])
        return np.divide(n_cx + t_c * lower, n_c + t_c, out=lower.copy(), where=n_c > 0)

    for order, name in enumerate(RUNGS):
        lower = rung(order, 1)
        ladder[name] = float(-np.log(lower[counts]).mean())
        if name == "bigram" and period:
            ladder["position_bigram"] = float(-np.log(rung(1, period)[counts]).mean())
    return ladder


def contexts_at_once(ids, answers, order, period, V):
    """Contexts, and contexts with what is asked for behind them, as numbers."""
    code = np.arange(2, ids.size) % period
    for lag in range(order, 0, -1):
        code = code * V + ids[2 - lag : ids.size - lag]
    return code, code * V + answers[2:]


@given(st.data(), st.integers(1, 6), st.integers(1, 30), st.integers(1, 20), st.sampled_from([None, 1, 3]))
def test_in_blocks_and_in_several_readings_it_is_the_same_to_the_last_digit(data, V, block, most, period):
    ids = st.lists(st.integers(0, V - 1), min_size=3, max_size=60)
    train, validation = (np.array(data.draw(ids), np.uint16) for _ in range(2))
    labels = scored = None
    if data.draw(st.booleans()):
        drawn = st.lists(st.integers(-1, V - 1), min_size=60, max_size=60)
        labels = tuple(np.array(data.draw(drawn))[: side.size] for side in (train, validation))
        labels[0][2] = labels[1][2] = 0
        scored = labels[1] >= 0
    expected = ladder_at_once(train, validation, V, period, scored, labels)
    cut = Shards(np.split(train, [train.size // 3]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ngrams, "BLOCK", block)
        patched.setattr(ngrams, "MOST", most)
        assert ngram_ladder(cut, validation, V, period, scored, labels) == expected


def test_more_followers_than_are_kept_take_another_reading(monkeypatch):
    """Of 20 tokens in any order no more than 40 pairs are kept at once, and 400 occur."""
    readings = []
    kept = ngrams._Kinds.merge
    monkeypatch.setattr(ngrams, "BLOCK", 100)
    monkeypatch.setattr(ngrams, "MOST", 40)
    monkeypatch.setattr(ngrams._Kinds, "merge", lambda self: readings.append(kept(self).size) or kept(self))
    train, validation = np.random.default_rng(0).integers(0, 20, (2, 9000))
    assert ngram_ladder(train, validation[:500], 20) == ladder_at_once(train, validation[:500], 20)
    assert max(readings) <= 40 and sum(readings) > 400


PEAK = """
import sys
import numpy as np
from kssm_mlx.metrics import ngrams
from tests.support.appetite import peak_resident
ngrams.BLOCK, ngrams.MOST = int(sys.argv[2]), 1 << 17
ids = np.memmap(sys.argv[1], np.uint16, mode="r")
validation = np.random.default_rng(1).integers(0, 300, 2000)
before = peak_resident()
ngrams.ngram_ladder(ids, validation, 300)
print(peak_resident() - before)
"""


def peak(path, block):
    """Bytes that a process takes to count a file of ids, `block` of them at once."""
    command = [sys.executable, "-c", PEAK, str(path), str(block)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def test_four_times_the_tokens_are_counted_in_no_more_memory(tmp_path):
    """Of random ids, behind whose contexts is ever more that is new. At once it takes more."""
    taken = []
    for size in (1 << 20, 1 << 22):
        path = tmp_path / f"{size}.bin"
        np.random.default_rng(size).integers(0, 300, size, dtype=np.uint16).tofile(path)
        taken.append(peak(path, 1 << 16))
    assert taken[1] <= 1.2 * taken[0] and peak(path, 1 << 22) > 2 * taken[1]
