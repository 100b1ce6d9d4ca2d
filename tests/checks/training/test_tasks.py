"""What is asked of texts and not of tasks, and what counting scores on a task."""

from dataclasses import replace

import numpy as np
import pytest

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tasks import make_task
from kssm_mlx.metrics.ngrams import ngram_ladder
from kssm_mlx.training.recipe import parse
from tests.support.check_contexts import measure
from tests.support.fakes import TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")
SMALL = {"train_rows": 300, "validation_rows": 200}
STREAMS = {"length": 32, "vocab": 64, **SMALL}


def context(tmp_path, name="interleaved", model=None, **task):
    asked, length = {"source": f"task:{name}", "task": task}, make_task(name, task).length
    recipe = parse({"data": asked, "train": {"context": length, "batch_size": 8}, "eval": {"tokens": 1600}})
    data = prepare(recipe.data, tmp_path / "data")
    return Context(model, None, recipe, data, data.tokenizer)


@pytest.mark.parametrize("id", ["C19", "C29"])
def test_what_is_asked_of_texts_is_not_asked_of_tasks(id, tmp_path):
    ctx = context(tmp_path, **STREAMS)
    model, history = TinyRecurrent(ctx.data.vocab_size), [{"kind": "train", "step": 1000}]
    ctx = replace(ctx, model=model, history=history)
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
