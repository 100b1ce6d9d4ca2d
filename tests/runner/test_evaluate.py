"""`kssm eval`: the numbers are those of the parts, on the run's own text and on another."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.cli.tables import evaluation_rows
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.streams import cuts, documents
from kssm_mlx.data.tasks.tracking import WordProblem
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import DataError
from kssm_mlx.models.base import Output, Trained
from kssm_mlx.runner.evaluate import evaluate, measure_tracking
from kssm_mlx.runner.folder import read_run_recipe
from kssm_mlx.training.recipe import Recipe, override, parse
from tests.support.fakes import Memoryless, TinyRecurrent


@pytest.fixture
def run(tmp_path):
    """A run folder with its data, and the model that is evaluated."""
    words = np.random.default_rng(0).choice(["sun", "moon", "star", "é"], size=3000)
    (tmp_path / "text.txt").write_text(" ".join(words))
    table = {"data": {"source": f"file:{tmp_path / 'text.txt'}"}, "train": {"context": 32, "batch_size": 4}}
    recipe: Recipe = parse(table)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    data = prepare(recipe.data, folder / "data")
    return folder, Trained(TinyRecurrent(256), data.tokenizer, str(folder), "d" * 64)


def test_the_own_text(run):
    folder, trained = run
    numbers = evaluate(trained, folder, tokens=640)
    data = TokenData.open(folder / "data")
    assert numbers["data"] == f"validation of {folder}" and numbers["tokens"] == 640
    assert abs(numbers["nats_per_token"] - math.log(256)) < 0.5
    bits = numbers["nats_per_token"] / math.log(2) / data.bytes_per_target(numbers["tokens"])
    assert numbers["bits_per_byte"] == pytest.approx(bits)
    ladder = list(numbers["ladder"].values())
    assert ladder == sorted(ladder, reverse=True) and ladder[0] == math.log(256)


def test_context_gain_is_zero_without_memory_only(run):
    folder, trained = run
    assert evaluate(trained, folder, tokens=320)["context_gain"] != 0
    without = Trained(Memoryless(256), trained.tokenizer, "", "")
    assert evaluate(without, folder, tokens=320)["context_gain"] == pytest.approx(0, abs=1e-5)


def test_another_text(run, tmp_path):
    folder, trained = run
    (tmp_path / "other.txt").write_text("Quite another text. " * 100)
    numbers = evaluate(trained, folder, source=f"file:{tmp_path / 'other.txt'}")
    assert numbers["data"].startswith("file:") and numbers["tokens"] == 1984
    assert numbers["ladder"]["bigram"] > evaluate(trained, folder)["ladder"]["bigram"]


def test_another_text_is_read_as_the_run_s_own(tmp_path):
    """With the special tokens of the recipe, where it allows them."""
    text = tmp_path / "talk.txt"
    text.write_text("<|user|> asks <|assistant|> answers <|endofturn|> " * 100)
    counts = {}
    for special in (True, False):
        changes = {"data.source": f"file:{text}", "data.special_tokens": special}
        recipe = parse({"data": {"tokenizer": "chars-reserved"}, "train": {"context": 32, "batch_size": 4}})
        recipe = override(recipe, changes)
        folder = tmp_path / f"run-{special}"
        folder.mkdir()
        (folder / "recipe.json").write_text(recipe.model_dump_json())
        data = prepare(recipe.data, folder / "data")
        trained = Trained(TinyRecurrent(data.vocab_size), data.tokenizer, str(folder), "d" * 64)
        counts[special] = evaluate(trained, folder, source=f"file:{text}", tokens=10_000)["tokens"]
    assert counts[True] < 0.6 * counts[False]


@pytest.mark.parametrize("kind", ["file", "jsonl"])
def test_of_another_text_that_is_large_only_what_is_scored_is_read(kind, run, tmp_path, monkeypatch):
    """The numbers are those of the whole text, of which NUL at the end, refused elsewhere, is never read."""
    folder, trained = run
    texts, own = ["Quite another text. " * 40 + str(i) for i in range(20)], tmp_path / "large.txt"
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    own.write_text(lines if kind == "jsonl" else " ".join(texts))
    expected = evaluate(trained, folder, source=f"{kind}:{own}", tokens=1000)
    own.write_text(own.read_text() + "\0")
    with pytest.raises(DataError, match="NUL"):
        evaluate(trained, folder, source=f"{kind}:{own}", tokens=1000)
    for module, name, value in ((documents, "LARGE", 0), (documents, "BLOCK", 500), (cuts, "PIECE", 300)):
        monkeypatch.setattr(module, name, value)
    assert evaluate(trained, folder, source=f"{kind}:{own}", tokens=1000) == expected


def test_what_cannot_be_used_is_refused(run, tmp_path):
    folder, trained = run
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(DataError, match="short"):
        evaluate(trained, folder, source=f"file:{tmp_path / 'short.txt'}")
    with pytest.raises(DataError):
        evaluate(trained, folder, source="file:absent.txt")


def test_a_model_from_elsewhere_is_scored_on_english_or_a_text(tmp_path):
    trained = Trained(TinyRecurrent(256), ByteTokenizer(), "somewhere", "d" * 64)
    numbers = evaluate(trained, tmp_path, tokens=1024)
    assert numbers["data"] == "the English of the package" and numbers["tokens"] == 1024
    assert numbers["nats_per_token"] > numbers["ladder"]["unigram"] > 0  # it is not trained
    (tmp_path / "text.txt").write_text("Quite another text. " * 100)
    other = evaluate(trained, tmp_path, source=f"file:{tmp_path / 'text.txt'}")
    assert other["tokens"] == 1536 and other["ladder"]["bigram"] < numbers["ladder"]["bigram"]


def test_a_model_without_tokenizer_says_what_is_missing(tmp_path):
    without = Trained(TinyRecurrent(40), None, "m", "d", {"hint": "no tokenizer for 40 embedding rows"})
    with pytest.raises(DataError, match="m: no tokenizer for 40 embedding rows"):
        evaluate(without, tmp_path)


def test_a_checkpoint_is_scored_as_its_run(run):
    folder, trained = run
    step = folder / "checkpoints" / "step_00000001"
    assert evaluate(trained, step, tokens=640)["nats_per_token"] == pytest.approx(
        evaluate(trained, folder, tokens=640)["nats_per_token"]
    )


def test_the_context_gain_is_that_of_the_checks(run, monkeypatch):
    """Both of the first GAIN_TOKENS targets: `kssm eval` and the card once said two values under one name."""
    folder, trained = run
    for module in ("kssm_mlx.training.evaluation", "kssm_mlx.checks.training.language"):
        monkeypatch.setattr(f"{module}.GAIN_TOKENS", 320)
    data = TokenData.open(folder / "data")
    context = Context(model=trained.model, data=data, recipe=read_run_recipe(folder), untrained=True)
    (check,) = suite.run_suite(context, ["C18"])
    ours = evaluate(trained, folder, tokens=1024)
    assert ours["context_gain"] == pytest.approx(check.numbers["context_gain"], abs=1e-6)
    assert ours["context_gain_se"] == pytest.approx(check.numbers["context_gain_se"], abs=1e-6)


class Tracker:
    """Reads the state of a word problem off exactly, but for noise: of every place, or a walk."""

    training = False

    def __init__(self, task, noise=0.0, adds_up=False):
        self.task, self.noise, self.adds_up = task, noise, adds_up

    def train(self, mode=True):
        self.training = mode

    def forward(self, tokens):
        states = self.task.answers(np.pad(np.array(tokens), [(0, 0), (0, 1)]))[:, 1:]
        noise = self.noise * np.random.default_rng(0).normal(size=(*states.shape, self.task.vocab_size))
        noise = noise.cumsum(axis=1) if self.adds_up else noise
        return Output(mx.array(np.eye(self.task.vocab_size)[states] + noise), None, {})


SYMMETRIC = WordProblem(group="S3", train_length=16, test_lengths=(64, 256), test_rows=64)


def test_a_tracker_that_is_right_has_no_spread():
    found = measure_tracking(Tracker(SYMMETRIC), SYMMETRIC, 0)
    assert [*found] == [16, 64, 256]
    for at in found.values():
        assert at["accuracy"] == 1 and at["spread"] == pytest.approx(0, abs=1e-6)


def test_errors_that_add_up_are_told_from_those_that_are_corrected():
    """A walk's spread grows as the square root of the length; noise that is forgotten stays what it is."""
    walk = [at["spread"] for at in measure_tracking(Tracker(SYMMETRIC, 0.03, True), SYMMETRIC, 0).values()]
    stays = [at["spread"] for at in measure_tracking(Tracker(SYMMETRIC, 0.1), SYMMETRIC, 0).values()]
    assert walk[1] / walk[0] == pytest.approx(2, rel=0.15) and walk[2] / walk[1] == pytest.approx(2, rel=0.15)
    # Means sqrt(2) apart, and noise of .1 along each line between two.
    assert stays == pytest.approx([0.1 / (math.sqrt(2) / 2)] * 3, rel=0.1)


def test_of_a_run_on_such_a_task_lengths_are_told_and_shown(tmp_path):
    task = {"group": "S3", "train_length": 8, "test_lengths": [16], "test_rows": 4, "train_rows": 32}
    data = {"source": "task:word-problem", "task": {**task, "validation_rows": 16}}
    recipe = parse({"data": data, "train": {"context": 8, "batch_size": 4}})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    prepared = prepare(recipe.data, tmp_path / "data")
    model = TinyRecurrent(prepared.vocab_size)
    numbers = evaluate(Trained(model, prepared.tokenizer, "", ""), tmp_path, tokens=64)
    assert numbers["lengths"] == measure_tracking(model, prepared.task, recipe.data.seed)
    at = numbers["lengths"][16]
    shown = f"accuracy {at['accuracy']:.3f}, spread {at['spread']:.3g}"
    assert ("16 tokens, second half", shown) in evaluation_rows(numbers)


def test_of_text_no_lengths_are_told(run):
    folder, trained = run
    assert "lengths" not in evaluate(trained, folder, tokens=320)
