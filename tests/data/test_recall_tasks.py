"""MQAR, the six of MAD and Dyck: what is asked for is what a reader of the row would answer."""

import numpy as np
import pytest

from kssm_mlx.data.tasks import make_task
from kssm_mlx.errors import ConfigError

ROWS = 60


def rows(task, split="validation"):
    return [task.sample(0, split, i) for i in range(ROWS)]


def test_mqar_asks_each_key_once_after_all_pairs_and_early():
    task = make_task("mqar", {"vocab": 64, "pairs": 4, "train_length": 48})
    asked = []
    for ids, scored in rows(task):
        said = dict(zip(ids[:8:2].tolist(), ids[1:8:2].tolist(), strict=True))
        places = np.flatnonzero(scored) - 1
        assert len(said) == 4 and sorted(ids[places]) == sorted(said) and places.min() >= 8
        assert max(said) < 32 <= min(said.values()) and 0 not in said
        assert [task.answers(ids)[p + 1] for p in places] == [said[key] for key in ids[places].tolist()]
        asked += places.tolist()
    assert all((p - 8) % 2 == 0 for p in asked)
    assert np.median(asked) < (8 + 48) / 2 - 4  # by the power law


def test_what_was_answered_is_not_read():
    """In MQAR, the copy and compression of MAD: the label is no later input, so that nobody can copy it."""
    for name in ("mqar", "mad-copy", "mad-memorize", "mad-compress"):
        task = make_task(name)
        hits = [
            task.answers(ids)[t] == ids[t]
            for ids, scored in rows(task)
            for t in np.flatnonzero(scored)
            if t < task.length
        ]
        assert np.mean(hits) < 0.05, name


@pytest.mark.parametrize("name", ["mad-recall", "mad-noisy"])
def test_recall_asks_for_every_value_that_was_said_before(name):
    task, shares = make_task(name), []
    for ids, scored in rows(task):
        known, pairs = {}, ids.reshape(-1, 2)
        for i, (key, value) in enumerate(pairs.tolist()):
            noise = key >= 16
            assert (value >= 16) == noise and (noise or (key < 8 <= value))
            assert scored[2 * i + 1] == (key in known and not noise) and not scored[2 * i]
            assert noise or known.setdefault(key, value) == value
        assert scored[-1]
        shares.append(np.mean(pairs[:, 0] >= 16))
    assert np.mean(shares) == pytest.approx(0.2 if name == "mad-noisy" else 0, abs=0.04)


def test_the_fuzzy_keys_of_validation_are_long_and_those_of_training_all_sizes():
    task = make_task("mad-fuzzy")
    sizes = {split: set() for split in ("train", "validation")}
    for split, found in sizes.items():
        for ids, scored in rows(task, split):
            assert scored[-1] and not scored[ids == 15].any()
            assert np.flatnonzero(ids != 15)[0] == np.sum(ids == 15)  # padding stands before the rest
            assert not scored[ids < 7].any()
            content = ids[ids != 15]
            edges = np.flatnonzero(np.diff(content < 7)) + 1
            parts = np.split(content, edges)
            assert all(len(set(part.tolist())) == part.size for part in parts)
            found |= {part.size for part in parts[::2]}
    assert sizes == {"train": {1, 2, 3}, "validation": {3}}


def test_blanks_are_not_copied():
    task = make_task("mad-copy", {"train_length": 40, "symbols": 6})
    for ids, scored in rows(task):
        given = ids[:33][ids[:33] < 14]
        assert given.size == 6 and ids[33] == 15 and set(ids[34:40]) == {14}
        assert np.flatnonzero(scored).tolist() == list(range(35, 41))
        np.testing.assert_array_equal(task.answers(ids)[35:], given)


def test_what_is_memorised_is_the_same_in_every_row_and_split():
    task, said = make_task("mad-memorize"), {}
    for split in ("train", "validation"):
        for ids, scored in rows(task, split):
            assert set(ids[1:-1:2]) == {255} and np.flatnonzero(scored).tolist() == list(range(2, 33, 2))
            for key, value in zip(ids[:-1:2].tolist(), task.answers(ids)[2::2].tolist(), strict=True):
                assert key < 127 <= value < 255 and said.setdefault(key, value) == value
    assert len(set(said.values())) == len(said) > 120


def test_everything_is_asked_for_after_the_end():
    task = make_task("mad-compress", {"train_length": 21})
    for ids, scored in rows(task):
        assert ids[10] == 15 and set(ids[11:21]) == {16} and set(ids[:10]) <= set(range(15))
        assert np.flatnonzero(scored).tolist() == list(range(12, 22))
        np.testing.assert_array_equal(task.answers(ids)[12:], ids[:10])


def test_the_innermost_bracket_by_hand():
    task = make_task("dyck", {"kinds": 2, "depth": 3, "train_length": 8})
    ids = np.array([0, 1, 3, 1, 0, 2, 3, 2, 0])  # ( [ ] [ ( ) ] )
    assert task.answers(ids).tolist()[1:] == [0, 1, 0, 1, 0, 1, 0, 4]
    assert task.answers(np.stack([ids, ids])).tolist() == [task.answers(ids).tolist()] * 2


def test_brackets_are_nested_as_deep_as_they_may_and_no_deeper():
    task, deepest = make_task("dyck", {"kinds": 3, "depth": 4, "train_length": 60}), 0
    for ids, _ in rows(task):
        depth = np.cumsum(np.where(ids[:-1] < 3, 1, -1))
        assert depth.min() >= 0
        deepest = max(deepest, depth.max())
    assert deepest == 4


def test_the_guess_of_a_bracket_is_measured():
    task = make_task("dyck", {"kinds": 2, "depth": 3, "train_length": 9})
    labels = np.stack([task.answers(task.sample(0, "train", i).ids)[1:] for i in range(6_000)])
    sampled = np.mean([np.bincount(place).max() / len(place) for place in labels.T])
    assert task.chance == pytest.approx(sampled, abs=0.01)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mqar", {"vocab": 9}, "vocab 9, pairs 4; expected an even vocab"),
        ("mqar", {"pairs": 64}, "vocab 128, pairs 64"),
        ("mqar", {"train_length": 12}, "pairs 4 in 12 places; expected at least 4 places for a pair"),
        ("mqar", {"test_lengths": [8]}, "pairs 4 in 8 places"),
        ("mad-recall", {"train_length": 128}, "odd lengths from 3"),
        ("mad-recall", {"vocab": 7}, "vocab 7.*expected an even vocab"),
        ("mad-noisy", {"noise": 1.0}, "noise 1.0; expected"),
        ("mad-noisy", {"noise_vocab": 0}, "noise_vocab 0"),
        ("mad-fuzzy", {"key_size": 8}, "key_size 8.*at most"),
        ("mad-fuzzy", {"train_length": 9}, "expected lengths from 11"),
        ("mad-copy", {"train_length": 32}, "symbols 16 in 32 places"),
        ("mad-memorize", {"train_length": 31}, "even lengths"),
        ("mad-compress", {"train_length": 64}, "odd lengths from 3"),
        ("dyck", {"kinds": 1}, "expected two kinds or more"),
        ("dyck", {"depth": 0}, "depth 0"),
    ],
)
def test_unusable_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_task(name, options)
