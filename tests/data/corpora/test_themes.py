"""The synthetic themes: distinct, of every theme, the same for a seed, new on both sides of a split."""

import re
from collections import Counter

import pytest

from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.corpora.themes import PATTERNS, load_phrases, themed_samples
from kssm_mlx.data.splits import split_corpus
from kssm_mlx.errors import ConfigError


def long_passages(texts, length=64):
    return {text[i : i + length] for text in texts for i in range(len(text) - length + 1)}


@pytest.fixture(scope="module")
def samples():
    return themed_samples(seed=0)


def test_at_least_700_distinct_samples_of_every_theme(samples):
    assert len({sample.text for sample in samples}) == len(samples) == 800
    share = Counter(sample.theme for sample in samples)
    assert len(share) == len(load_phrases()) >= 15 and set(share.values()) == {50}


def test_samples_are_whole_sentences_of_8_to_46_words(samples):
    for _, text in samples:
        assert 8 <= len(text.split()) <= 46
        assert re.fullmatch(r"([A-Z][^.{}]*\.)( [A-Z][^.{}]*\.){0,2}", text), text
    assert len({len(text.split()) for _, text in samples}) > 25
    assert Counter(text.count(".") for _, text in samples).keys() == {1, 2, 3}


def test_nearly_every_phrase_is_used(samples):
    for theme, slots in load_phrases().items():
        said = " ".join(text.lower() for its, text in samples if its == theme)
        silent = [phrase for values in slots.values() for phrase in values if phrase.lower() not in said]
        assert len(silent) <= 1


def test_the_seed_decides_and_nothing_else(samples):
    assert themed_samples(seed=0) == samples
    other = themed_samples(seed=1)
    assert [s.theme for s in other] != [s.theme for s in samples]
    assert len({s.text for s in other} & {s.text for s in samples}) < 20  # short ones, by chance
    assert themed_samples(seed=0, samples=20) == samples[:20]


def test_no_64_bytes_are_in_two_samples_so_no_split_leaks(samples):
    assert all(text.isascii() for _, text in samples)
    seen = set()
    for _, text in samples:
        own = long_passages([text])
        assert seen.isdisjoint(own)
        seen |= own
    (train, validation), method, _ = split_corpus(open_corpus("themes"), "auto", 0.1, seed=5)
    assert method == "documents" and len(train) + len(validation) == 800
    assert long_passages(train).isdisjoint(long_passages(validation))


def test_the_phrases_fit_the_patterns():
    used = set(re.findall(r"\{(\w+)\}", " ".join(PATTERNS)))
    for slots in load_phrases().values():
        assert slots.keys() == used
        for values in slots.values():
            assert len(set(values)) == len(values) == 8


def test_the_source_takes_seed_and_samples():
    corpus = open_corpus("themes:seed=2,samples=30")
    assert corpus.documents == [s.text for s in themed_samples(2, 30)]
    assert (corpus.name, corpus.licence) == ("themes:seed=2,samples=30", "MIT")
    assert open_corpus("themes").digest != open_corpus("themes:seed=1").digest


@pytest.mark.parametrize(
    "source, message",
    [
        ("themes:sed=1", "themes has 'sed=1'; expected themes:seed=0,samples=800; did you mean 'seed'"),
        ("themes:seed=x", "themes has 'seed=x'"),
        ("themes:samples=0", "samples is 0 and seed 0; expected at least 1"),
    ],
)
def test_other_options_are_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        open_corpus(source)


def test_what_the_phrases_cannot_give_is_refused(monkeypatch):
    monkeypatch.setattr("kssm_mlx.data.corpora.themes._MISSES", 3)
    with pytest.raises(ConfigError, match=r"100000 samples cannot be made .* nothing new after \d+; ask for"):
        themed_samples(0, 100_000)
