"""A task as token files: rows aligned, answers scored, and everything behind them unchanged."""

import math

import numpy as np
import pytest

from kssm_mlx.data.batches import evaluation_windows, random_batch, track_batch, windows_per_epoch
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tokenizers.factory import load_tokenizer
from kssm_mlx.data.tokenizers.plain import IdTokenizer
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import ConfigError, DataError
from kssm_mlx.training.recipe import parse
from tests.support.tiny_run import rows, tiny_run

MODULAR = {"p": 13, "length": 5, "validation_rows": 40}


def recipe(name="modular", task=MODULAR, context=5, **sections):
    return parse(
        {"data": {"source": f"task:{name}", "task": task}, "train": {"context": context, **sections}}
    )


@pytest.fixture
def data(tmp_path):
    return prepare(recipe().data, tmp_path / "data")


def decoded(tokens):
    return np.where(tokens < 0, -2 - tokens, tokens)


def test_the_files_hold_the_rows_and_say_what_they_are(data):
    assert data.task.p == 13 and data.train.row == 6
    assert data.index["task"]["name"] == "modular" and data.index["corpus"]["source"] == "task:modular"
    np.testing.assert_array_equal(data.train.starts, np.arange(84) * 6)
    for i in (0, 83):
        ids, scored = data.task.sample(0, "train", i)
        np.testing.assert_array_equal(data.train.ids[6 * i : 6 * i + 6], ids)
        np.testing.assert_array_equal(data.train.scored[6 * i : 6 * i + 6], scored)
    assert data.verify()["validation_tokens"] == 240
    assert prepare(recipe().data, data.folder).index == data.index  # nothing written twice
    other = prepare(recipe(task={**MODULAR, "p": 11}).data, data.folder)
    assert other.vocab_size == 16 and other.train.starts.size == 60


def test_ids_are_a_text_of_numbers(data):
    tokenizer = load_tokenizer(data.folder)
    assert tokenizer.digest == IdTokenizer(32).digest == data.tokenizer.digest
    ids = data.validation.ids[:100]
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)
    for text, message in [("3 x", "not a text of ids"), ("3 32", "token id 32 is not in the vocabulary")]:
        with pytest.raises(DataError, match=message):
            tokenizer.encode(text)


def test_a_changed_mask_is_noticed(data):
    path = data.folder / "train.scored.bin"
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(DataError, match=r"train.scored.bin has sha256"):
        TokenData.open(data.folder).verify()


def test_batches_are_whole_rows_and_an_epoch_has_each_once(data):
    split = data.train
    assert windows_per_epoch(split, 5) == 84
    batches = [random_batch(split, 0, step, 12, 5) for step in range(7)]
    assert all(batch.resets is None and batch.tokens.dtype == np.int32 for batch in batches)
    tokens = np.concatenate([batch.tokens for batch in batches])
    ids = decoded(tokens)
    np.testing.assert_array_equal(np.unique(ids, axis=0), np.unique(split.ids.reshape(84, 6), axis=0))
    assert ((ids[:, 0] + ids[:, 2]) % 13 == ids[:, 4]).all()
    np.testing.assert_array_equal(tokens >= 0, np.broadcast_to([1, 0, 0, 0, 1, 0], tokens.shape))


def test_evaluation_is_the_first_rows(data):
    batches = list(evaluation_windows(data.validation, 52, 5, 4))
    ids = np.concatenate([decoded(batch.tokens) for batch in batches])
    np.testing.assert_array_equal(ids.ravel(), data.validation.ids[: ids.size])
    assert len(ids) == 10


def test_rows_neither_grow_nor_go_on(data):
    with pytest.raises(DataError, match=r"set train\.context = 5"):
        random_batch(data.train, 0, 0, 2, 6)
    with pytest.raises(DataError, match="hand_off = false"):
        track_batch(data.train, 0, 2, 5)


@pytest.mark.parametrize(
    "table, message",
    [
        ({"data": {"source": "task:modular"}}, "train.context is 128.* set train.context = 15"),
        ({"data": {"source": "task:modulo"}}, "did you mean 'modular'"),
        ({"data": {"source": "task:modular", "validation": 0.2}}, "a task brings its tokenizer and split"),
        ({"data": {"source": "task:modular", "tokenizer": "bytes"}}, "a task brings its tokenizer"),
        ({"data": {"source": "pydoc", "task": {"p": 7}}}, r"goes with source = \"task:NAME\""),
    ],
)
def test_recipes_that_do_not_fit_are_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        parse(table)


def test_a_saved_recipe_reads_back():
    first = recipe()
    assert parse(first.model_dump()) == first and first.data.tokenizer == "ids"


def test_a_run_scores_what_is_scored_and_names_the_bound(tmp_path):
    task = {"length": 16, "vocab": 16, "train_rows": 64, "validation_rows": 32}
    sections = {
        "data": {"source": "task:interleaved", "tokenizer": "ids", "task": task},
        "train": {"steps": 4},
    }
    tiny_run(tmp_path / "run", **sections)
    (last,) = rows(tmp_path / "run", "eval")[-1:]
    bound = TokenData.open(tmp_path / "data").task.bound()
    assert last["tokens"] == 16 * 16 and (last["ceiling"], last["floor"]) == bound[:2]
    assert last["skill"] == pytest.approx((last["accuracy"] - 1 / 16) / (bound.accuracy - 1 / 16))
    assert 0 <= last["accuracy_tail"] <= 1 and abs(last["nats_tail"] - math.log(16)) < 1
