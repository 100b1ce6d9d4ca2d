"""G1 and G6: tasks without a rule or scored where nothing is to be known, and scores that nobody can have."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx import models
from kssm_mlx.checks.base import Context
from kssm_mlx.data.tasks import TASKS, make_task
from kssm_mlx.data.tokens import prepare
from kssm_mlx.metrics.ngrams import ngram_ladder
from kssm_mlx.models.base import Output
from kssm_mlx.training.recipe import parse
from tests.checks.contexts import measure

pytestmark = pytest.mark.usefixtures("uncompiled")
SMALL = {"train_rows": 300, "validation_rows": 200}
STREAMS = {"length": 32, "vocab": 64, **SMALL}


def context(tmp_path, name="interleaved", model=None, **task):
    asked, length = {"source": f"task:{name}", "task": task}, make_task(name, task).length
    recipe = parse({"data": asked, "train": {"context": length, "batch_size": 8}, "eval": {"tokens": 1600}})
    data = prepare(recipe.data, tmp_path / "data")
    return Context(model, None, recipe, data, data.tokenizer)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_as_it_comes_has_a_rule(name, tmp_path):
    check = measure("G1", context(tmp_path, name, **SMALL))
    assert check.verdict == "pass", check.got


@pytest.mark.parametrize(
    "name, task, message",
    [
        ("interleaved", {**STREAMS, "broken": True}, "0.0000 above no skill"),
        ("modular", {"p": 13, "whole_row": True}, "least entropy of a scored position 0.00"),
    ],
)
def test_the_tasks_that_went_wrong_are_caught(name, task, message, tmp_path):
    check = measure("G1", context(tmp_path, name, **task))
    assert check.verdict == "fail" and message in check.got


def test_rows_that_do_not_follow_the_rule_are_caught(tmp_path):
    ctx = context(tmp_path, **STREAMS)
    ids = np.random.default_rng(0).permutation(ctx.data.validation.ids)
    path = ctx.data.folder / "validation.bin"
    path.write_bytes(ids.tobytes())
    check = measure("G1", Context(data=type(ctx.data).open(ctx.data.folder), recipe=ctx.recipe))
    assert check.verdict == "fail" and "of a ceiling of 0.75" in check.got


def test_text_is_not_judged(prepared_text):
    assert measure("G1", prepared_text).verdict == "not measurable"


@pytest.fixture
def prepared_text(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a text of some words " * 40)
    recipe = parse({"data": {"source": f"file:{text}"}})
    return Context(recipe=recipe, data=prepare(recipe.data, tmp_path / "data"))


class Seeing:
    """A model that reads the token it is to predict, as one without a causal mask can."""

    def __init__(self, vocab_size, knows_the_last):
        self.args = models.configure("mamba", "xs", vocab_size=vocab_size)
        self._last, self.training = knows_the_last, False

    def train(self, on=True):
        self.training = on

    def parameters(self):
        return {}

    def update(self, _):
        pass

    def forward(self, tokens, cache=None, intervention=None, *, resets=None):
        ahead = mx.concatenate([tokens[:, 1:], tokens[:, -1:]], axis=1)
        logits = 12.0 * (mx.arange(self.args.vocab_size) == ahead[..., None])
        return Output(logits if self._last else mx.zeros_like(logits), [], {})


@pytest.mark.parametrize("sees, verdict", [(True, "fail"), (False, "pass")])
def test_a_score_above_the_ceiling_is_a_leak(sees, verdict, tmp_path):
    ctx = context(tmp_path, **STREAMS)
    ctx.model, ctx.history = Seeing(ctx.data.vocab_size, sees), [{"kind": "train", "step": 1000}]
    check = measure("G6", ctx)
    assert check.verdict == verdict, check.got


@pytest.mark.parametrize("id", ["C19", "C29"])
def test_what_is_asked_of_texts_is_not_asked_of_tasks(id, tmp_path):
    ctx = context(tmp_path, **STREAMS)
    ctx.model, ctx.history = Seeing(ctx.data.vocab_size, True), [{"kind": "train", "step": 1000}]
    check = measure(id, ctx)
    assert check.verdict == "not measurable" and "a task" in check.got


def test_counting_scores_the_targets_of_a_task_only(tmp_path):
    """After "=" a sum is uniform for whoever sees two tokens; the padding, which is certain, is not asked."""
    ctx = context(tmp_path, "modular", p=13, length=8)
    ids, scored = ctx.data.validation.first(50)
    assert scored.sum() == 50 and scored[-1] and ids.size == scored.size
    rungs = [
        ngram_ladder(ctx.data.train.ids, ids, ctx.data.vocab_size, scored=s)["trigram"]
        for s in (None, scored)
    ]
    assert rungs[0] < 1.5 < np.log(13) - 0.1 < rungs[1]
