"""Repeated paragraphs of a stream: those that `remove_repeated_paragraphs` finds of the text at once."""

import random

import numpy as np
import pytest

from kssm_mlx.data.corpora.corpus import Corpus, corpus_digest
from kssm_mlx.data.corpora.repeats import REPEAT, remove_repeated_paragraphs
from kssm_mlx.data.streams import repeats
from kssm_mlx.data.streams.documents import HeldText
from kssm_mlx.data.streams.repeats import paragraphs, without_repeats
from kssm_mlx.data.streams.survey import survey

LETTERS = "abcdefghijklmnopqrstuvwxyz é…"


def stream_of(texts):
    return HeldText(Corpus("texts", "texts", list(texts), "none", corpus_digest(texts)))


def left(texts, work):
    """What is left of each, without those of which nothing is."""
    found = without_repeats(stream_of(texts), work)
    documents = list(found.documents())
    read = ["".join(document.pieces()) for document in documents]
    assert [document.nbytes for document in documents] == [len(text.encode()) for text in read]
    if read:
        assert survey(found, lambda nbytes: None).digest == corpus_digest(read)
    return read


def at_once(texts):
    return [text for text in remove_repeated_paragraphs(texts) if text.strip()]


def drawn(rng):
    """Documents of fresh paragraphs, and of parts of earlier ones of about the length that counts."""

    def fresh(length):
        return "".join(rng.choices(LETTERS, k=length))

    said, texts = [fresh(200)], []
    for _ in range(rng.randint(1, 12)):
        own = []
        for _ in range(rng.randint(1, 8)):
            old, length = rng.choice(said), rng.choice([40, 55, 62, 63, 64, 65, 90])
            begin = rng.randrange(len(old))
            quoted = fresh(rng.randint(0, 9)) + old[begin : begin + length] + fresh(rng.randint(0, 9))
            own.append(rng.choice([fresh(rng.randint(0, 300)), quoted, "", " " * 70, old, "ab" * 50]))
        said += [part for part in own if part]
        texts.append(rng.choice(["\n\n", "\n\n\n", "\n"]).join(own))
    return [text for text in texts if text.strip()] or [fresh(80)]


@pytest.mark.parametrize("block, in_file", [(70, 1 << 9), (1 << 18, 1 << 25)])
def test_what_is_left_is_what_is_left_at_once(block, in_file, monkeypatch, tmp_path):
    """Passages of 63 bytes and of 64, on both sides of the borders of what is hashed at once, in chains."""
    monkeypatch.setattr(repeats, "BLOCK", block)
    monkeypatch.setattr(repeats, "SORTED", in_file)
    went = 0
    for seed in range(60):
        texts = drawn(random.Random(seed))
        assert left(texts, tmp_path / f"{seed}") == at_once(texts), seed
        went += at_once(texts) != texts
    assert went > 20


def test_the_border_is_64_bytes_and_who_went_takes_nobody_along(tmp_path):
    a, b, c = ("".join(random.Random(letter).choices(LETTERS[:26], k=200)) for letter in "abc")
    assert left([a, "new " + a[50 : 50 + REPEAT - 1]], tmp_path / "63") == [a, "new " + a[50 : 49 + REPEAT]]
    assert left([a, "new " + a[50 : 50 + REPEAT]], tmp_path / "64") == [a]
    # The second goes for what the first has; the third shares with the second alone, so it stays.
    assert left([a, a[:100] + b, b[50:] + c], tmp_path / "chain") == [a, b[50:] + c]


def test_paragraphs_are_those_of_the_whole_however_it_is_cut():
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choices("ab\n", weights=[1, 1, 3], k=rng.randint(0, 40)))
        cuts = sorted(rng.choices(range(len(text) + 1), k=4))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        document = repeats.Document(0, lambda pieces=pieces: iter(pieces))
        assert list(paragraphs(document)) == text.split("\n\n")


def test_what_was_found_is_kept_until_the_text_changes(monkeypatch, tmp_path):
    texts = [LETTERS[:26] * 5, "new\n\n" + LETTERS[:26] * 5]
    first = without_repeats(stream_of(texts), tmp_path)
    assert first.gone.tolist() == [2] and [p.name for p in tmp_path.iterdir()] == [repeats.REPEATS]
    with monkeypatch.context() as patched:
        patched.setattr(repeats, "_find_repeats", lambda *_: pytest.fail("looked for again"))
        again = without_repeats(stream_of(texts), tmp_path)
    np.testing.assert_array_equal(first.nbytes_left, again.nbytes_left)
    assert without_repeats(stream_of([*texts, LETTERS[:26] * 6]), tmp_path).gone.tolist() == [2, 3]
