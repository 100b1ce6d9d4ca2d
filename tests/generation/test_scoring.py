"""Log-likelihoods of texts: what one forward pass over all of it says, whatever the pieces."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.errors import DataError
from kssm_mlx.generation import scoring
from kssm_mlx.generation.scoring import score_continuation, score_text
from tests.support.fakes import TinyRecurrent

TEXT = "The order parameter of a population is what is left when phases cancel."


@pytest.fixture
def model():
    return TinyRecurrent(256, width=16, blocks=1)


def nats_of(model, ids):
    """By hand: log p of each id but the first, from one pass."""
    logits = np.array(model.forward(mx.array([ids[:-1]])).logits[0].astype(mx.float32), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p[np.arange(len(ids) - 1), ids[1:]], logits.argmax(-1) == np.array(ids[1:])


def test_a_text_in_pieces_is_the_text(model, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 16)
    tokenizer = ByteTokenizer()
    opening = [] if tokenizer.separator_id is None else [tokenizer.separator_id]
    ids = [*opening, *tokenizer.encode(TEXT).tolist()]
    expected, hits = nats_of(model, ids)
    found = score_text(model, tokenizer, TEXT)
    assert found.nats == pytest.approx(expected.sum(), rel=1e-5)
    assert (found.tokens, found.greedy) == (len(ids) - 1, bool(hits.all()))


def test_a_continuation_is_what_it_adds_to_its_context(model):
    tokenizer = ByteTokenizer()
    whole, context = score_text(model, tokenizer, TEXT), score_text(model, tokenizer, TEXT[:18])
    found = score_continuation(model, tokenizer, TEXT[:18], TEXT[18:])
    assert found.nats == pytest.approx(whole.nats - context.nats, rel=1e-4)
    assert found.tokens == len(TEXT) - 18
    spaced = score_continuation(model, tokenizer, TEXT[:9] + " ", TEXT[10:])
    assert TEXT[9] == " " and spaced == score_continuation(model, tokenizer, TEXT[:9], TEXT[9:])
    assert score_continuation(model, tokenizer, "", TEXT) == whole


def test_what_is_likeliest_is_greedy(model):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(TEXT).tolist()
    opening = [] if tokenizer.separator_id is None else [tokenizer.separator_id]
    best = int(model.forward(mx.array([[*opening, *ids]])).logits[0, -1].argmax())
    other = next(i for i in range(32, 127) if i != best)
    assert not score_continuation(model, tokenizer, TEXT, chr(other)).greedy
    if 32 < best < 127:
        assert score_continuation(model, tokenizer, TEXT, chr(best)).greedy


def test_ids_that_the_model_does_not_have_are_refused():
    with pytest.raises(DataError, match=r"token 1\d\d, the model's vocabulary ends at 31"):
        score_text(TinyRecurrent(32, width=8, blocks=1), ByteTokenizer(), TEXT)
