"""Several corpora in one run: rows by weight, held-out text in turns, each source's own numbers."""

import json
import math
import shutil

import numpy as np
import pytest

from kssm_mlx.data.batches import count_sources, evaluation_windows, random_batch, track_batch
from kssm_mlx.data.mixtures import (
    BLOCK,
    PIECE,
    apportion,
    assign_rows,
    count_rows,
    name_sources,
    refuse_many_epochs,
    take_turns,
)
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import ConfigError, DataError
from kssm_mlx.training.evaluation import Scores, source_metrics
from kssm_mlx.training.recipe import parse


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Digits three times as often as letters; another file of the same name with dots."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "more").mkdir()
    texts = {"digits.txt": "0123456789", "letters.txt": "abcdefgh", "more/letters.txt": "...,;"}
    for name, letters in texts.items():
        (folder / name).write_text("".join(np.random.default_rng(0).choice(list(letters), 60_000)))
    weights = {"digits.txt": 6, "letters.txt": 1, "more/letters.txt": 1}
    sources = [{"source": f"file:{folder / name}", "weight": w} for name, w in weights.items()]
    recipe = parse({"data": {"sources": sources, "tokenizer": "chars"}})
    return prepare(recipe.data, folder / "data"), recipe


def names_of(data, rows):
    """Of rows of tokens, whose each is: from what they say."""
    kinds = {"digits": "digits.txt", "letters": "letters.txt", "dots": "letters.txt-2"}
    found = []
    for row in rows:
        text = data.tokenizer.decode(row.tolist())
        kind = "digits" if text[0].isdigit() else "letters" if text[0].isalpha() else "dots"
        assert len({c.isdigit() + 2 * c.isalpha() for c in text}) == 1  # no row reads on in another source
        found.append(kinds[kind])
    return found


def test_rows_have_the_weights_and_batches_are_a_function_of_seed_and_step(mixed):
    data, _ = mixed
    rows, counted = [], dict.fromkeys((part.name for part in data.train.parts), 0)
    for step in range(BLOCK // 8):
        batch = random_batch(data.train, 3, step, 8, 32)
        for name, count in count_sources(data.train, 3, step, 8).items():
            counted[name] += count
        rows += names_of(data, batch.tokens)
    assert counted == {"digits.txt": 768, "letters.txt": 128, "letters.txt-2": 128}
    assert {name: rows.count(name) for name in counted} == counted
    again = random_batch(data.train, 3, 77, 8, 32)
    assert np.array_equal(again.tokens, random_batch(data.train, 3, 77, 8, 32).tokens)
    assert not np.array_equal(again.tokens, random_batch(data.train, 4, 77, 8, 32).tokens)


def test_a_source_is_read_once_before_it_is_read_again(mixed):
    """Windows of the rarest source over its first epoch: none twice, also across blocks and batches."""
    data, _ = mixed
    part = data.train.parts[2]
    windows = (part.end - part.begin - 512) // 512
    starts = []
    for step in range(windows):
        batch = random_batch(data.train, 0, step, 8, 512)
        ours = [r for r, name in zip(batch.tokens, names_of(data, batch.tokens)) if name == part.name]
        starts += [row.tobytes() for row in ours]
    # One row of eight is of it, on average: most of an epoch.
    assert len(starts) == len(set(starts)) > windows // 2


def test_the_ordinal_of_a_row_is_how_many_were_before(mixed):
    weights = (5.0, 0.5, 2.0)
    whole = assign_rows(weights, 9, 0, 3000)
    for source in range(3):
        assert np.array_equal(
            whole.ordinals[whole.sources == source], np.arange(sum(whole.sources == source))
        )
    part = assign_rows(weights, 9, 1500, 7)
    assert np.array_equal(part.sources, whole.sources[1500:1507])
    assert np.array_equal(part.ordinals, whole.ordinals[1500:1507])
    assert count_rows(weights, 9, 1500).tolist() == np.bincount(whole.sources[:1500]).tolist()
    assert apportion((1, 1, 1)) == (342, 341, 341)


def test_held_out_text_takes_turns_by_weight(mixed):
    data, _ = mixed
    owners = data.validation.owners
    sizes = np.diff([*data.validation.starts.tolist(), data.validation.ids.size])
    assert owners[:6].tolist() == [0, 1, 2, 0, 0, 1] and sizes.max() == PIECE
    pieces = [[(0, 10), (10, 20), (20, 30)], [(0, 5), (5, 10)]]
    turns = [(0, 0, 10), (1, 0, 5), (0, 10, 20), (1, 5, 10), (0, 20, 30)]
    assert take_turns(pieces, [2, 1]) == turns
    assert sum(batch.tokens.shape[0] for batch in evaluation_windows(data.validation, 4096, 32, 8)) == 128


def test_each_source_has_its_own_bits_per_byte(mixed):
    """A model that needs one bit for every digit and two for everything else."""
    data, _ = mixed
    tokens = np.concatenate([b.tokens for b in evaluation_windows(data.validation, 17_000, 32, 8)])
    digits = np.array([data.tokenizer.decode([i]).isdigit() for i in range(data.vocab_size)])
    nats = np.where(digits[tokens[:, 1:]], 1.0, 2.0) * math.log(2)
    found = source_metrics(Scores(tokens, nats, np.zeros_like(nats)), data)
    for name, bits in (("digits.txt", 1.0), ("letters.txt", 2.0), ("letters.txt-2", 2.0)):
        # A separator is a target too, and has no bytes.
        assert found[f"bits_per_byte:{name}"] == pytest.approx(bits, rel=1e-3)
        assert found[f"nats_per_token:{name}"] == pytest.approx(bits * math.log(2), rel=1e-3)


def test_files_are_kept_and_made_anew_for_other_weights(mixed):
    data, recipe = mixed
    index = data.folder / "index.json"
    before = index.stat().st_mtime_ns
    prepare(recipe.data, data.folder)
    assert index.stat().st_mtime_ns == before and data.verify()["train_tokens"] == data.train.ids.size
    table = recipe.data.model_dump()
    table["sources"][0]["weight"] = 1
    other = prepare(parse({"data": table}).data, data.folder.parent / "other")
    assert not np.array_equal(other.validation.owners, data.validation.owners)


def test_what_a_mixture_cannot_be(mixed, tmp_path):
    data, _ = mixed
    sources = [{"source": "pydoc"}, {"source": f"file:{tmp_path / 'missing.txt'}"}]
    recipe = parse({"data": {"sources": sources}})
    with pytest.raises(DataError, match=r"missing.txt does not exist"):
        prepare(recipe.data, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(
        ConfigError, match=r"sources stand in place of source, got both: 'themes' and 'pydoc'"
    ):
        parse({"data": {"source": "themes", "sources": [{"source": "pydoc"}]}})
    with pytest.raises(ConfigError, match=r"a mixture is of texts, got 'task:copy', a task"):
        parse({"data": {"sources": [{"source": "task:copy"}]}})
    with pytest.raises(
        ConfigError, match=r"a weight of 0.001 among 3.001 is less than one row of 1024: raise"
    ):
        apportion((3, 0.001))
    with pytest.raises(
        DataError, match=r"sources of a mixture do not go on into each other; set train.hand_off"
    ):
        track_batch(data.train, 0, 2, 8)
    with pytest.raises(DataError, match=r"digits.txt has \d+ tokens to train on, but context 59999 and the"):
        random_batch(data.train, 0, 0, 512, 59999)
    parts = tuple(part._replace(epochs=0.5) for part in data.train.parts)
    refuse_many_epochs(parts, 0, 8, 32)
    with pytest.raises(
        DataError, match=r"digits.txt would be read 0.\d+ times, its epochs is 0.5; lower its"
    ):
        refuse_many_epochs(parts, 0, BLOCK * 2, 32)


def test_a_folder_whose_sources_do_not_have_its_tokens_is_refused(mixed, tmp_path):
    data, _ = mixed
    shutil.copytree(data.folder, tmp_path / "data")
    index = json.loads((tmp_path / "data/index.json").read_text())
    index["mixture"][0]["train"] -= 1
    (tmp_path / "data/index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"train.bin has"):
        TokenData.open(tmp_path / "data")


def test_names_are_short_and_each_once():
    assert name_sources(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
