"""What generation promises: rows equal solo runs, cuts change nothing, memory stays flat, text is whole."""

import inspect

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.errors import CheckpointError, ConfigError, DataError
from kssm_mlx.generation import follow, generate, stream
from kssm_mlx.generation.decode import prefill
from tests.support.generation_fakes import Counting, Growing, endless

PROMPTS = ["a", "the longest prompt of them all", "middle one"]
SETTINGS = {
    "greedy": {"repetition_penalty": 1.4},
    "sampled": {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1},
}


@pytest.fixture(scope="module")
def model():
    return Counting()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_each_row_of_a_batch_is_its_solo_run(model, settings):
    together = generate(model, ByteTokenizer(), PROMPTS, max_tokens=40, seeds=[3, 4, 5], **settings)
    for prompt, seed, row in zip(PROMPTS, [3, 4, 5], together):
        (alone,) = generate(model, ByteTokenizer(), prompt, max_tokens=40, seed=seed, **settings)
        assert (row.ids, row.text, row.finished) == (alone.ids, alone.text, alone.finished)
        np.testing.assert_allclose(row.logprobs, alone.logprobs, atol=1e-5)


def test_a_row_that_stops_early_leaves_the_others_alone_and_keeps_its_own_state(model):
    tokenizer = ByteTokenizer()
    free = generate(model, tokenizer, PROMPTS, max_tokens=30, temperature=1.0, seeds=[1, 2, 3])
    tokenizer.separator_id = free[0].ids[4]
    rows = generate(model, tokenizer, PROMPTS, max_tokens=30, temperature=1.0, seeds=[1, 2, 3])
    assert rows[0].finished == "separator" and len(rows[0].ids) < 5
    (alone,) = generate(model, tokenizer, PROMPTS[0], max_tokens=30, temperature=1.0, seed=1)
    np.testing.assert_array_equal(np.array(rows[0].state.keys), np.array(alone.state.keys))
    np.testing.assert_array_equal(np.array(rows[0].state.history), np.array(alone.state.history))
    caches = [np.array(row.state.cache[0][0]) for row in (rows[0], alone)]
    np.testing.assert_allclose(*caches, atol=1e-6)
    assert rows[0].state.pending.item() == tokenizer.separator_id
    assert max(len(row.ids) for row in rows) > len(rows[0].ids)


def test_the_separator_can_be_an_ordinary_token(model):
    tokenizer = ByteTokenizer()
    (free,) = generate(model, endless(), "x", max_tokens=30, temperature=1.0)
    tokenizer.separator_id = free.ids[3]
    (through,) = generate(model, tokenizer, "x", max_tokens=30, temperature=1.0, stop_at_separator=False)
    assert through.ids == free.ids and through.finished == "length"


def test_one_seed_gives_equal_rows_and_seeds_tell_them_apart(model):
    same = generate(model, endless(), ["x", "x"], max_tokens=20, temperature=1.0, seed=7)
    apart = generate(model, endless(), ["x", "x"], max_tokens=20, temperature=1.0, seeds=[7, 8])
    assert same[0].ids == same[1].ids == apart[0].ids != apart[1].ids


def test_logprobs_are_the_models_own(model):
    (done,) = generate(model, endless(), "abc", max_tokens=12, temperature=1.3, top_k=5)
    tokens = [*b"abc", *done.ids]
    logits = np.array(model(mx.array([tokens])))[0].astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(done.logprobs, [logp[2 + i, t] for i, t in enumerate(done.ids)], atol=1e-4)


def test_prefill_in_chunks_equals_prefill_at_once_and_bounds_the_call():
    rows = [np.arange(n, dtype=np.int32) % 256 for n in (0, 5, 64, 65, 150)]
    model = Counting()
    caches = {}
    for chunk in (32, 1000):
        model.longest = 0
        caches[chunk] = prefill(model, model.make_cache(), rows, chunk)
        assert model.longest == min(chunk, 150)
    for cut, whole in zip(*caches.values()):
        np.testing.assert_allclose(np.array(cut[0]), np.array(whole[0]), atol=1e-6)


def test_decoding_compiles_once_and_a_growing_cache_not_at_all():
    steady, growing = Counting(), Growing()
    generate(steady, endless(), "abc", max_tokens=50)
    generate(growing, endless(), "abc", max_tokens=50)
    assert steady.calls <= 4  # prefill, one eager step, the trace
    assert growing.calls == 51


def test_memory_does_not_grow_with_the_text(model, repeatable_peak):
    def peak(prompt, max_tokens):
        generate(model, endless(), prompt, max_tokens=2)
        mx.reset_peak_memory()
        generate(model, endless(), prompt, max_tokens=max_tokens)
        return mx.get_peak_memory()

    assert peak("a" * 6000, 5) < 1.3 * peak("a" * 1200, 5)
    assert peak("a", 300) < 1.3 * peak("a", 30)


def test_pieces_are_whole_characters_and_join_to_the_text(model):
    pieces = stream(model, endless(), PROMPTS, max_tokens=60, temperature=1.0, seeds=[1, 2, 3])
    assert inspect.isgenerator(pieces)
    shown = []
    rows = follow(pieces, shown.append)
    texts = ["".join(piece.text for piece in shown if piece.row == i) for i in range(3)]
    assert texts == [row.text for row in rows]
    for row in rows:  # a character that was cut at the last token waits in the state
        assert ByteTokenizer().decode(row.ids) in (row.text, f"{row.text}\ufffd")


def test_an_empty_prompt_starts_from_the_separator_or_asks_for_one(model):
    (empty,) = generate(model, ByteTokenizer(), "", max_tokens=10)
    (explicit,) = generate(model, ByteTokenizer(), "\0", max_tokens=10)
    assert empty.ids == explicit.ids
    with pytest.raises(ConfigError, match="empty prompt starts from the separator"):
        generate(model, endless(), "", max_tokens=10)


def test_bad_requests_are_refused_in_words(model):
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        generate(model, ByteTokenizer(), "x", max_tokens=0)
    with pytest.raises(ConfigError, match="1 seeds for 2 prompts"):
        generate(model, ByteTokenizer(), ["x", "y"], seeds=[1])
    with pytest.raises(ConfigError, match="seeds are whole numbers from 0 on, got -1"):
        generate(model, ByteTokenizer(), "x", seed=-1)
    with pytest.raises(ConfigError, match="no prompt"):
        generate(model, ByteTokenizer(), [])
    with pytest.raises(ConfigError, match="without a tokenizer"):
        generate(model, None, "x")
    with pytest.raises(DataError, match="token 122, the model's vocabulary ends at 99"):
        generate(Counting(vocab_size=100), ByteTokenizer(), "z")


def test_a_state_of_another_tokenizer_or_another_count_is_refused(model):
    (done,) = generate(model, ByteTokenizer(), "x", max_tokens=3)
    with pytest.raises(CheckpointError, match="token ids mean different text"):
        generate(model, CharTokenizer("abc"), "", state=done.state)
    with pytest.raises(ConfigError, match="2 prompts for a state of 1 conversations"):
        generate(model, ByteTokenizer(), ["", ""], state=done.state)
