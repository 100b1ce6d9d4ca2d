import hashlib

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.data.batches import evaluation_windows, random_batch, track_batch, windows_per_epoch
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tasks import make_task
from kssm_mlx.data.tokens import TokenSplit
from kssm_mlx.errors import DataError
from kssm_mlx.training.losses import cut_rows, split_rows
from kssm_mlx.training.recipe import parse

# sha256 of the batches of tasks as they were before there were labels.
BATCHES = {
    "toy": ({}, "47ac30a977aa32a2"),
    "interleaved": ({"length": 40}, "675961d07876a2b0"),
    "modular": ({"p": 13}, "603deaa1354696bb"),
    "copy": ({"symbols": 6}, "38783d4fe4a8d693"),
    "selective-copy": ({"symbols": 4, "span": 12}, "7bc50d0e6b785aa3"),
    "induction": ({"length": 20}, "650844bda2791bd8"),
    "counting": ({"n": 3, "length": 20}, "bb020e69d8908ac6"),
    "passkey": ({"distances": [0, 5, 20]}, "8a75c8627c3bd771"),
}


def task_data(folder, name, **options):
    """Token files of a task, and the targets of its rows."""
    options = {**options, "train_rows": 300, "validation_rows": 60}
    length = make_task(name, options).length
    recipe = parse({"data": {"source": f"task:{name}", "task": options}, "train": {"context": length}})
    return prepare(recipe.data, folder), length


@pytest.mark.parametrize("name", BATCHES)
def test_tasks_without_labels_have_the_batches_they_had(name, tmp_path):
    options, expected = BATCHES[name]
    data, length = task_data(tmp_path, name, **options)
    digest = hashlib.sha256()
    for step in (0, 7):
        digest.update(random_batch(data.train, 3, step, 16, length).tokens.tobytes())
    for batch in evaluation_windows(data.validation, 4096, length, 16):
        digest.update(batch.tokens.tobytes())
    assert digest.hexdigest()[:16] == expected


def test_labelled_rows_are_inputs_over_labels(tmp_path):
    data, length = task_data(tmp_path, "parity", train_length=12)
    tokens, resets = random_batch(data.train, 0, 0, 8, length)
    assert tokens.shape == (8, 2, 12) and tokens.dtype == np.int32 and resets is None
    np.testing.assert_array_equal(np.cumsum(tokens[:, 0], axis=1) % 2, tokens[:, 1])
    shorter = random_batch(data.train, 0, 0, 8, 5).tokens  # the beginnings of the same rows
    np.testing.assert_array_equal(shorter, tokens[:, :, :5])
    inputs, targets = split_rows(mx.array(tokens))
    np.testing.assert_array_equal(np.stack([inputs, targets], axis=1), tokens)


def test_a_place_that_asks_for_nothing_has_no_label():
    ids, labels = np.arange(8), np.arange(8) + 20
    scored = np.array([0, 1, 0, 1] * 2)
    split = TokenSplit("train", ids, np.array([0, 4]), scored, 4, labels)
    (batch,) = evaluation_windows(split, 6, 3, 8)
    assert batch.tokens.tolist() == [[[0, 1, 2], [21, -2, 23]], [[4, 5, 6], [25, -2, 27]]]
    assert -1 not in batch.tokens  # which would be padding


@pytest.mark.parametrize("labelled", [False, True])
def test_rows_are_cut_to_their_targets(labelled):
    row = np.arange(10)[None]
    rows = mx.array(np.stack([row[:, :-1], row[:, 1:] + 50], axis=1) if labelled else row)
    inputs, targets = split_rows(cut_rows(rows, 2, 5))
    assert inputs.tolist() == [[2, 3, 4]]
    assert targets.tolist() == ([[53, 54, 55]] if labelled else [[3, 4, 5]])
    assert split_rows(cut_rows(rows, 7))[0].tolist() == [[7, 8]]


def counting(length, starts=(0,)):
    """A split whose ids are their own positions."""
    return TokenSplit("train", np.arange(length, dtype=np.uint16), np.array(starts, np.uint64))


@st.composite
def splits(draw, shortest=2):
    length = draw(st.integers(shortest, 400))
    others = draw(st.sets(st.integers(1, length - 1), max_size=8))
    return counting(length, [0, *sorted(others)])


@given(splits(60), st.integers(0, 5), st.integers(0, 50), st.integers(1, 7), st.integers(2, 20))
def test_random_batches_depend_on_seed_and_step_only(split, seed, step, batch_size, context):
    first = random_batch(split, seed, step, batch_size, context)
    for other in range(step + 3):
        random_batch(split, seed + 1, other, 3, context)
    again = random_batch(split, seed, step, batch_size, context)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert first.tokens.shape == (batch_size, context + 1) and first.tokens.dtype == np.int32
    assert (np.diff(first.tokens) == 1).all()  # windows of neighbours


@given(splits(30), st.integers(0, 3), st.integers(1, 6), st.integers(2, 30))
def test_an_epoch_visits_disjoint_windows_once(split, seed, batch_size, context):
    if split.ids.size <= context:
        return
    n = windows_per_epoch(split, context)
    steps = -(-3 * n // batch_size)
    rows = np.concatenate([random_batch(split, seed, s, batch_size, context).tokens for s in range(steps)])
    for epoch in range(3):
        starts = np.sort(rows[epoch * n : (epoch + 1) * n, 0])
        assert (np.diff(starts) == context).all() and starts[0] >= 0
        assert starts[-1] + context < split.ids.size
    assert split.ids.size - n * context < 2 * context  # nothing is left out but the ends


def test_epochs_differ_in_order_and_offset():
    split, context = counting(20_000), 16
    n = windows_per_epoch(split, context)
    epochs = random_batch(split, 0, 0, 5 * n, context).tokens[:, 0].reshape(5, n)
    assert len({int(e.min()) for e in epochs}) > 1
    assert len({tuple(e - e.min()) for e in epochs}) == 5
    assert not np.array_equal(epochs, random_batch(split, 1, 0, 5 * n, context).tokens[:, 0].reshape(5, n))


@given(splits(60), st.integers(0, 20), st.integers(1, 5), st.integers(2, 20))
def test_resets_are_exactly_the_document_starts(split, step, batch_size, context):
    batch = random_batch(split, 0, step, batch_size, context)
    if split.starts.size == 1:
        assert batch.resets is None
    else:
        np.testing.assert_array_equal(batch.resets, np.isin(batch.tokens[:, :-1], split.starts))


@given(splits(110), st.integers(1, 5), st.integers(2, 20))
def test_tracks_continue_where_they_stopped_and_reset_at_starts_and_wraps(split, batch_size, context):
    steps = (split.ids.size - 1) // batch_size // context
    previous = None
    for step in range(steps + 2):
        batch = track_batch(split, step, batch_size, context)
        wrapped = step % steps == 0
        if previous is not None and not wrapped:
            np.testing.assert_array_equal(batch.tokens[:, 0], previous.tokens[:, -1])
        expected = np.isin(batch.tokens[:, :-1], split.starts)
        expected[:, 0] |= wrapped
        np.testing.assert_array_equal(batch.resets, expected)
        previous = batch
    again = track_batch(split, 1 % steps, batch_size, context)
    np.testing.assert_array_equal(previous.tokens, again.tokens)


def test_tracks_do_not_overlap():
    split = counting(1001)
    rows = np.concatenate([track_batch(split, s, 4, 25).tokens[:, :-1] for s in range(10)], axis=None)
    assert len(set(rows.tolist())) == rows.size == 1000


@given(splits(60), st.integers(1, 500), st.integers(2, 20), st.integers(1, 7))
def test_evaluation_is_the_beginning_in_order(split, tokens, context, batch_size):
    batches = list(evaluation_windows(split, tokens, context, batch_size))
    inputs = np.concatenate([b.tokens[:, :-1] for b in batches], axis=None)
    np.testing.assert_array_equal(inputs, np.arange(inputs.size))
    assert inputs.size <= max(tokens, context)
    assert all(len(b.tokens) == batch_size for b in batches[:-1])
    assert all((b.resets is None) == (split.starts.size == 1) for b in batches)


def test_evaluation_does_not_disturb_training():
    split = counting(500)
    before = [random_batch(split, 0, s, 4, 8).tokens for s in range(6)]
    after = []
    for s in range(6):
        after.append(random_batch(split, 0, s, 4, 8).tokens)
        list(evaluation_windows(split, 100, 8, 3))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("length, works", [(16, False), (17, True)])
def test_one_window_is_the_least(length, works):
    split = counting(length)
    if works:
        assert random_batch(split, 0, 5, 2, 16).tokens.tolist() == [list(range(17))] * 2
        return
    message = "the train split has 16 tokens, but context 16 and the token after it need 17; give more text"
    for ask in (
        lambda: random_batch(split, 0, 0, 2, 16),
        lambda: evaluation_windows(split, 100, 16, 2),
        lambda: windows_per_epoch(split, 16),
    ):
        with pytest.raises(DataError, match=message):
            ask()


def test_tracks_that_would_be_too_short_are_refused():
    assert track_batch(counting(65), 0, 4, 16).tokens.shape == (4, 17)
    with pytest.raises(DataError, match=r"4 tracks of context 16 need 65; .* lower train\.batch_size or"):
        track_batch(counting(64), 0, 4, 16)
