"""Tasks: the rows follow their rule, the oracle finds it, and nobody can do better than the bound says."""

import math

import numpy as np
import pytest

from kssm_mlx.data.tasks import TASKS, make_task
from kssm_mlx.data.tasks.files import task_rows
from kssm_mlx.data.tasks.streams import sampled_bounds
from kssm_mlx.errors import ConfigError, DataError

SMALL = {
    "toy": {},
    "interleaved": {"length": 40},
    "modular": {"p": 13},
    "copy": {"symbols": 6},
    "selective-copy": {"symbols": 4, "span": 12},
    "induction": {"length": 20},
    "counting": {"n": 3, "length": 20},
    "passkey": {"distances": [0, 5, 20]},
    "word-problem": {"train_length": 20},
    "parity": {"train_length": 20},
    "dyck": {"train_length": 24},
    "mqar": {"train_length": 32},
    "mad-recall": {"train_length": 31},
    "mad-fuzzy": {"train_length": 40},
    "mad-noisy": {"train_length": 31},
    "mad-copy": {"train_length": 30, "symbols": 6},
    "mad-memorize": {"train_length": 12},
    "mad-compress": {"train_length": 21},
}
every_task = pytest.mark.parametrize("name", list(TASKS))


@every_task
def test_a_row_depends_on_seed_split_and_index_only(name):
    task = make_task(name, SMALL[name])
    first = task.sample(3, "validation", 5)
    others = [task.sample(*key) for key in [(3, "train", 5), (3, "validation", 6), (4, "validation", 5)]]
    np.testing.assert_array_equal(first.ids, task.sample(3, "validation", 5).ids)
    assert all(not np.array_equal(first.ids, row.ids) for row in others)
    assert first.ids.shape == first.scored.shape == (task.length + 1,)
    assert not first.scored[0] and first.scored.any()
    assert first.ids.min() >= 0 and first.ids.max() < task.vocab_size


@every_task
def test_the_oracle_reaches_the_bound(name):
    """On every scored target, with its own predictions: at most the ceiling, at least 5 SE below."""
    task = make_task(name, SMALL[name])
    hits = []
    for i in range(60):
        ids, scored = task.sample(0, "validation", i)
        hits += [task.predict(ids[:t]) == task.answers(ids)[t] for t in np.flatnonzero(scored)]
    expected = task.bound().accuracy
    error = math.sqrt(max(expected * (1 - expected), 1e-12) / len(hits))
    assert abs(np.mean(hits) - expected) < 5 * error + 1e-9
    assert task.skill(expected) == pytest.approx(1) and task.skill(task.baseline) == pytest.approx(0)


def test_the_worked_example_of_the_note_cannot_be_predicted_where_it_says():
    """After 10 5 20 the 15 is the first there is; a stream is known once one period of it has passed."""
    A, B = np.resize([10, 20, 30], 8), np.resize([5, 15], 8)
    ids, task = np.stack([A, B], axis=1).ravel(), make_task("interleaved", {"vocab": 64, "length": 15})
    right = [task.predict(ids[:t]) == ids[t] for t in range(ids.size)]
    best, _ = task.bayes(ids)
    assert ids[:4].tolist() == [10, 5, 20, 15] and best[2] == pytest.approx(1 / 64)
    assert not any(right[:5]) and all(right[5:])  # from 2 · 2 + 1 in B, from 2 · 3 in A


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_nobody_has_skill_where_nothing_can_be_learned(jitter):
    """Nor where the baseline is above the ceiling, as that of jitter is."""
    task = make_task("interleaved", {"broken": True, "jitter": jitter})
    assert task.skill(task.chance) == task.skill(0.5) == 0


def test_knowing_where_the_padding_is_is_no_skill():
    """Of 15 targets 13 are certain; y and z are guessed."""
    task = make_task("modular", {"whole_row": True})
    assert task.baseline == pytest.approx(0.8678, abs=5e-5)
    assert task.skill((13 + 2 / 113) / 15) == pytest.approx(0) and task.skill(0.9339) == pytest.approx(
        1, 0.01
    )


def test_a_row_of_noise_has_no_last_target():
    """And one row of that kind does not keep the others from being averaged."""
    task = make_task("interleaved", {"jitter": 0.99, "length": 8})
    assert task.bound("last").accuracy < 0.1
    ids, _ = next(row for row in (task.sample(0, "train", i) for i in range(50)) if (row.ids == 4096).all())
    assert not task.places(ids)["last"].any()


@pytest.mark.parametrize(
    "name, options, metric, message",
    [
        ("toy", {}, "tial", "no bound for 'tial'; this task has scored, tail, last; did you mean 'tail'"),
        ("toy", {"length": 6}, "tail", "no bound for 'tail'; this task has scored, last"),
        ("toy", {"length": 6, "vocab": 4096}, "tail", "no bound for 'tail'; this task has scored, last"),
        ("modular", {}, "tail", "no bound for 'tail'; this task has scored, all"),
        ("copy", {}, "last", "no bound for 'last'; this task has scored$"),
        ("passkey", {}, "distance_9", "this task has scored, distance_8, distance_32, distance_96"),
    ],
)
def test_there_is_no_bound_for_a_place_that_rows_do_not_have(name, options, metric, message):
    with pytest.raises(ConfigError, match=message):
        make_task(name, options).bound(metric)


@every_task
def test_no_validation_row_is_a_training_row(name):
    task = make_task(name, {**SMALL[name], "train_rows": 300, "validation_rows": 60})
    rows = task_rows(task, seed=1)
    train, validation = ({row.tobytes() for row in rows[split][0]} for split in ("train", "validation"))
    assert not train & validation
    assert len(rows["train"][0]) == task.rows("train") and len(rows["validation"][0]) == task.rows(
        "validation"
    )


def test_a_task_with_too_few_different_rows_is_refused():
    with pytest.raises(DataError, match="can be learned by heart"):
        task_rows(make_task("copy", {"vocab": 2, "symbols": 3, "train_rows": 200, "validation_rows": 5}), 0)


@pytest.mark.parametrize("length", [31, 32, 128])
def test_interleaved_streams_repeat_with_their_periods(length):
    """Lags 2p, shapes, split and merge, for odd and even lengths."""
    task = make_task("interleaved", {"length": length})
    for i in range(50):
        ids, scored = task.sample(0, "train", i)
        streams = task.split(ids)
        merged = np.empty_like(ids)
        merged[0::2], merged[1::2] = streams
        np.testing.assert_array_equal(merged, ids)
        for s in range(2):
            fits = [
                p
                for p in range(2, 8)
                if np.array_equal(ids[s:][2 * p :: 2], ids[s : -2 * p : 2][: len(ids[s:][2 * p :: 2])])
            ]
            assert fits
        assert scored[1:].all() and ids[:-1].size == ids[1:].size == length


# L, acc* by the closed form, H* by the closed form, both by independent simulation.
TABLE = [
    (16, 0.5000, 4.383, 0.4977, 4.403),
    (32, 0.7500, 2.191, 0.7499, 2.193),
    (64, 0.8750, 1.0957, 0.8751, 1.0954),
    (128, 0.9375, 0.5479, 0.9380, 0.5439),
    (256, 0.9688, 0.2739, 0.9686, 0.2753),
    (512, 0.9844, 0.1370, 0.9846, 0.1353),
]


@pytest.mark.parametrize("length, accuracy, nats, simulated, simulated_nats", TABLE)
def test_the_ceiling_is_one_minus_eight_over_the_length(length, accuracy, nats, simulated, simulated_nats):
    bound = make_task("interleaved", {"length": length}).bound()
    assert bound.accuracy == pytest.approx(1 - 8 / length) == pytest.approx(accuracy, abs=5e-5)
    floor = (2 * (math.log(6) + 4.5 * math.log(4096)) - math.log(4096)) / length
    assert bound.nats == pytest.approx(floor) == pytest.approx(nats, abs=1e-3)
    assert bound.accuracy == pytest.approx(simulated, abs=0.0024)
    assert bound.nats == pytest.approx(simulated_nats, abs=0.021)


def test_the_bayes_predictor_agrees_with_the_closed_form_within_five_standard_errors():
    task = make_task("interleaved")
    for metric in ("scored", "last"):
        exact, sampled = task.bound(metric), sampled_bounds(task)[metric]
        assert abs(sampled.accuracy - exact.accuracy) <= 5 * sampled.accuracy_se + 1e-5
        assert abs(sampled.nats - exact.nats) <= 5 * sampled.nats_se + 1e-5
    assert task.bound("tail") == (1.0, 0.0, 0.0, 0.0)


def test_the_ceiling_of_every_target():
    """Source: docs/background/allostasis.md#ceilings, per target index: accuracy and nats in bins of two."""
    task = make_task("interleaved", {"length": 15})
    best, nats = np.zeros((2, 15))
    for i in range(1500):
        row = task.bayes(task.sample(0, "validation", i).ids)
        best, nats = best + row[0] / 1500, nats + row[1] / 1500
    bins = [0, 0, 0, *np.repeat(np.arange(1, 6) / 6, 2), 1, 1]
    np.testing.assert_allclose(best, bins, atol=0.05)
    np.testing.assert_allclose(nats[3:], [*np.repeat([7.38, 5.98, 4.55, 3.08, 1.60], 2), 0, 0], atol=0.35)
    np.testing.assert_allclose(nats[:3], math.log(4096), rtol=1e-6)


@pytest.mark.parametrize(
    "name, options, metric, accuracy, nats",
    [
        ("interleaved", {"length": 8}, "scored", 0.187, 7.02),
        ("interleaved", {"vocab": 8}, "scored", 0.9446, 0.156),
        ("interleaved", {"vocab": 64}, "scored", 0.9387, 0.286),
        ("interleaved", {"vocab": 8192}, "scored", 0.9375, 0.591),
        ("interleaved", {"vocab": 8}, "tail", 0.9995, None),
        ("interleaved", {"broken": True}, "scored", 1 / 4096, 8.318),
        ("toy", {}, "scored", 0.8893, 0.5777),
        ("toy", {"length": 63}, "scored", 0.9444, None),
        ("modular", {}, "all", 0.9339, 0.3152),
        ("modular", {"whole_row": True}, "scored", 0.9339, 0.3152),
    ],
)
def test_bounds_of_the_notes(name, options, metric, accuracy, nats):
    bound = make_task(name, options).bound(metric)
    assert bound.accuracy == pytest.approx(accuracy, abs=max(5 * bound.accuracy_se, 1e-3))
    if nats is not None:
        assert bound.nats == pytest.approx(nats, abs=max(5 * bound.nats_se, 2e-3))


def test_jitter_hides_the_lag_and_not_the_rule():
    """Noise is never scored, does not advance the streams, and its share is q."""
    task = make_task("interleaved", {"jitter": 0.2})
    shares = []
    for i in range(30):
        ids, scored = task.sample(0, "train", i)
        np.testing.assert_array_equal(scored[1:], ids[1:] != 4096)
        shares.append(np.mean(ids == 4096))
        for stream in task.split(ids):
            assert any(np.array_equal(stream[p:], stream[:-p]) for p in range(2, 8))
    assert np.mean(shares) == pytest.approx(0.2, abs=0.03)
    assert task.bound("tail").accuracy > 0.9999 and task.vocab_size == 4097 and task.baseline == 0.16


def test_modular_pairs_are_split_once():
    task = make_task("modular")
    assert (task.rows("train"), task.rows("validation"), task.vocab_size) == (6384, 2000, 128)
    whole = make_task("modular", {"validation_rows": 7000})
    rows = task_rows(whole, seed=0)
    pairs = {tuple(ids[[0, 2]]) for split in rows.values() for ids in split[0]}
    assert len(pairs) == 113**2
    ids, scored = whole.sample(0, "train", 0)
    assert np.flatnonzero(scored).tolist() == [4] and (ids[0] + ids[2]) % 113 == ids[4]
    assert [make_task("modular", {"p": p}).vocab_size for p in (7, 13, 41, 113, 227)] == [
        16,
        32,
        64,
        128,
        256,
    ]


def test_every_count_is_equally_frequent():
    task = make_task("counting", {"n": 3, "length": 12})
    answers = [task.sample(0, "train", i).ids[-1] for i in range(3000)]
    np.testing.assert_allclose(np.bincount(answers) / 3000, 1 / 3, atol=0.05)


def test_a_passkey_is_read_by_its_distance():
    task = make_task("passkey", {"distances": [0, 5, 20]})
    found = set()
    for i in range(40):
        ids, scored = task.sample(0, "train", i)
        (here,) = [name for name, place in task.places(ids).items() if place.any()]
        np.testing.assert_array_equal(task.places(ids)[here], scored[1:])
        found.add(here)
    assert found == {"distance_0", "distance_5", "distance_20"}


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("interleave", {}, "no task 'interleave'.*did you mean 'interleaved'"),
        ("interleaved", {"legnth": 8}, "unknown key 'data.task.legnth'.*did you mean 'length'"),
        ("interleaved", {"length": "8"}, "data.task.length: .*, got '8'"),
        ("interleaved", {"jitter": 1.0}, "jitter 1.0; expected"),
        ("modular", {"train_share": 1.5}, "a share between 0 and 1"),
        ("selective-copy", {"symbols": 9, "span": 8}, "symbols 9 in 8 places"),
        ("induction", {"length": 2}, "length from 4"),
        ("counting", {"n": 1}, "expected 2 <= n <= length"),
        ("passkey", {"distances": []}, "at least one distance"),
        *((name, {"train_rows": 0}, "data.task.train_rows must be at least 1, got 0") for name in TASKS),
        ("modular", {"train_rows": -4}, "data.task.train_rows must be at least 1, got -4"),
        ("toy", {"validation_rows": -1}, "data.task.validation_rows must be at least 1, got -1"),
        ("modular", {"p": 3, "train_share": 0.05}, "a share between 0 and 1 of at least one pair"),
    ],
)
def test_unusable_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_task(name, options)
