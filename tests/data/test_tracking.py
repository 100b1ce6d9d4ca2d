"""Groups and the tasks of state tracking: tables are those of groups, labels those of the running product."""

import numpy as np
import pytest

from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tasks import make_task
from kssm_mlx.data.tasks.groups import make_group
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import ConfigError, DataError
from kssm_mlx.training.recipe import parse

ORDERS = {
    **{"C2": 2, "C6": 6, "D3": 6, "D4": 8, "S2": 2, "S3": 6, "S4": 24, "S5": 120, "S6": 720},
    **{"A3": 3, "A4": 12, "A5": 60, "C2xA4": 24, "C2xC3": 6, "D3xC2": 12},
}
ABELIAN = {"C2", "C6", "S2", "A3", "C2xC3"}
# Elements by their order, which tells these groups apart from others of the same size.
PERIODS = {
    "S3": {1: 1, 2: 3, 3: 2},
    "D4": {1: 1, 2: 5, 4: 2},
    "A4": {1: 1, 2: 3, 3: 8},
    "S4": {1: 1, 2: 9, 3: 8, 4: 6},
    "A5": {1: 1, 2: 15, 3: 20, 5: 24},
    "C2xC3": {1: 1, 2: 1, 3: 2, 6: 2},
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_table_is_that_of_a_group(name):
    group = make_group(name)
    n, table = group.order, group.table
    assert n == ORDERS[name] and table.shape == (n, n)
    np.testing.assert_array_equal(table[0], np.arange(n))
    np.testing.assert_array_equal(table[:, 0], np.arange(n))
    for lines in (table, table.T):  # each element once in each row and column: inverses exist
        np.testing.assert_array_equal(np.sort(lines, axis=1), np.tile(np.arange(n), (n, 1)))
    i, j, k = np.random.default_rng(0).integers(0, n, (3, 2000))
    np.testing.assert_array_equal(table[table[i, j], k], table[i, table[j, k]])
    assert (name in ABELIAN) == bool((table == table.T).all())


@pytest.mark.parametrize("name", PERIODS)
def test_its_elements_have_the_orders_they_should(name):
    table = make_group(name).table
    found: dict[int, int] = {}
    for element in range(len(table)):
        power, period = element, 1
        while power:
            power, period = table[power, element], period + 1
        found[period] = found.get(period, 0) + 1
    assert found == PERIODS[name]


@pytest.mark.parametrize("name", ORDERS)
def test_the_generators_reach_every_element(name):
    group = make_group(name)
    seen = {0}
    while True:
        more = seen | {int(group.table[i, g]) for i in seen for g in group.generators}
        if more == seen:
            break
        seen = more
    assert len(seen) == group.order


@pytest.mark.parametrize(
    "name, message",
    [
        ("B4", "'B4' is no group known here; expected C2"),
        ("A5x", "'A5x' is no group"),
        ("D2", "'D2' is no group"),
        ("C1", "'C1' is no group"),
        ("S7", "S7 has 5040 elements; expected at most 720"),
        ("S999", "S999 has more than 1e9 elements"),
        ("A5xA5", "A5xA5 has 3600 elements"),
    ],
)
def test_other_groups_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        make_task("word-problem", {"group": name})


@pytest.mark.parametrize("group, alphabet, letters", [("A5", "generators", 4), ("S3", "all", 6)])
def test_a_label_is_the_product_so_far(group, alphabet, letters):
    task = make_task("word-problem", {"group": group, "alphabet": alphabet, "train_length": 24})
    table, used = make_group(group).table, set()
    for index in range(40):
        ids, scored = task.sample(0, "train", index)
        product = 0
        for t, g in enumerate(ids[:-1]):
            product = table[product, g]
            assert scored[t + 1] and task.answers(ids)[t + 1] == product == task.predict(ids[: t + 1])
        used |= set(ids[:-1].tolist())
    assert len(used) == letters and 0 in used  # the identity is a letter


def test_other_letters_come_as_often_as_they_are_asked_for():
    options = {"group": "A5", "alphabet": "generators", "train_length": 500}
    few, more, every = (make_task("word-problem", {**options, "others": x}) for x in (0.0, 0.2, 1.0))
    drawn = np.concatenate([more.sample(0, "train", i).ids[:-1] for i in range(40)])
    found = np.bincount(drawn, minlength=60) / drawn.size
    # Of 20,000 letters: four standard deviations, of the sum of 56 letters and of a single one.
    assert 1 - found[few.letters].sum() == pytest.approx(0.2 * 56 / 60, abs=4 * (0.19 * 0.81 / 20_000) ** 0.5)
    assert np.abs(found - more.frequencies).max() < 4 * (0.21 * 0.79 / 20_000) ** 0.5
    assert found.min() > 0 and every.chance == pytest.approx(1 / 60)
    # None of them: the rows that there were before anybody could ask.
    plain = make_task("word-problem", options)
    np.testing.assert_array_equal(few.sample(0, "train", 0).ids, plain.sample(0, "train", 0).ids)
    assert set(plain.sample(0, "train", 0).ids[:-1].tolist()) == set(few.letters.tolist())


def test_labels_of_many_rows_are_those_of_each():
    task = make_task("word-problem", {"group": "S4", "train_length": 9})
    rows = np.stack([task.sample(0, "train", i).ids for i in range(5)])
    np.testing.assert_array_equal(task.answers(rows), np.stack([task.answers(row) for row in rows]))


@pytest.mark.parametrize("others", [0.0, 0.3])
def test_a_guess_by_the_place_is_measured(others):
    """By sampling: the likeliest product at each place, over generators few of which are reached early."""
    options = {"group": "A5", "alphabet": "generators", "others": others, "train_length": 6}
    task = make_task("word-problem", options)
    products = np.stack([task.answers(task.sample(0, "train", i).ids)[1:] for i in range(6_000)])
    sampled = np.mean([np.bincount(place).max() / len(place) for place in products.T])
    assert task.chance == pytest.approx(sampled, abs=0.01) and task.chance > 2 / 60
    assert make_task("word-problem", {"group": "A5"}).chance == pytest.approx(1 / 60)


def test_parity_is_the_word_problem_of_two_elements():
    bits = make_task("parity", {"train_length": 16})
    words = make_task("word-problem", {"group": "C2", "train_length": 16})
    for i in range(10):
        row = bits.sample(3, "train", i)
        np.testing.assert_array_equal(row.ids, words.sample(3, "train", i).ids)
        np.testing.assert_array_equal(bits.answers(row.ids), words.answers(row.ids))


def test_a_longer_row_is_the_same_task():
    task = make_task("parity", {"train_length": 8, "test_lengths": [16, 64]})
    assert task.at(64).length == 64 and task.at(64).vocab_size == task.vocab_size
    assert task.at(64).sample(0, "validation", 0).ids.size == 65
    with pytest.raises(ConfigError, match="have 32 targets, and no form with 8"):
        make_task("copy").at(8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train_length": 0}, "train_length 0.*expected lengths from 1"),
        ({"test_lengths": [4, 0]}, r"test_lengths \[4, 0\]"),
        ({"test_rows": 0}, "test_rows 0.*at least one row"),
        ({"group": 5}, "data.task.group: .*, got 5"),
        ({"alphabet": "some"}, "data.task.alphabet: .*, got 'some'"),
        ({"alphabet": "generators", "others": 1.5}, "others 1.5 of the letters.*a share from 0 to 1"),
        ({"alphabet": "all", "others": 0.5}, 'others = 0.5 has no effect on alphabet = "all"'),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_task("word-problem", options)


def test_labels_are_files_whose_damage_is_seen(tmp_path):
    options = {"train_length": 8, "train_rows": 60, "validation_rows": 20}
    recipe = parse({"data": {"source": "task:word-problem", "task": options}, "train": {"context": 8}})
    data = prepare(recipe.data, tmp_path)
    assert data.verify()["train_tokens"] == 60 * 9
    path = tmp_path / "train.labels.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"train.labels.bin has .* bytes; expected"):
        TokenData.open(tmp_path)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DataError, match=r"train.labels.bin has sha256"):
        TokenData.open(tmp_path).verify()
    assert prepare(recipe.data, tmp_path / "again").index["files"] == data.index["files"]
