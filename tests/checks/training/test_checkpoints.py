"""C32: a checkpoint that another process opens as the same model, and three ways in which it is not."""

from dataclasses import replace

import mlx.core as mx
import pytest

from kssm_mlx import models
from kssm_mlx.checks.training import checkpoints
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.recipe import parse
from tests.support.check_contexts import fresh, fresh_kssm, measure

pytestmark = pytest.mark.usefixtures("uncompiled")


def test_a_rehearsal_gives_the_same_logits(prepared):
    """Nothing is drawn: the same bytes and the same arithmetic, so a second seed would say no more."""
    check = measure("C32", fresh_kssm(prepared))
    assert check.verdict == "pass" and check.numbers["gap"] <= 1e-6, check.got
    assert "best and pinned kept" in check.got


def test_a_fresh_model_with_a_transposed_head_gives_the_same_bits(prepared):
    """RWKV's orthogonal head has fewer rows than columns here, which makes it a transposed view."""
    context = fresh_kssm(prepared)
    table = {**context.recipe.model_dump(), "model": {"family": "rwkv", "size": "s"}}
    config = models.configure("rwkv", "s", vocab_size=context.data.vocab_size)
    rwkv = replace(context, model=models.build(config), config=config, recipe=parse(table))
    check = measure("C32", rwkv)
    assert (check.verdict, check.numbers["gap"]) == ("pass", 0.0), check.got


def saved(context, folder, spoil):
    """The context at the end of a run whose newest checkpoint was spoilt before it was written."""
    run = checkpoints._rehearse_run(context, folder).parent.parent
    there = checkpoint.load(run / "checkpoints" / "step_00000000")
    weights = spoil(there.tensors["model"])
    checkpoint.save(run / "checkpoints", replace(there, step=9, tensors={"model": weights}))
    return replace(context, run_folder=run, history=[{"kind": "train", "step": 9}])


def test_a_checkpoint_of_other_weights_is_caught(prepared, tmp_path):
    def stale(weights):
        return {name: array + 1e-3 for name, array in weights.items()}

    check = measure("C32", saved(fresh_kssm(prepared), tmp_path, stale))
    assert check.verdict == "fail" and check.got.startswith("logits differ by")
    assert "late saves" in check.fix


def test_a_checkpoint_without_a_tensor_is_caught(prepared, tmp_path):
    def torn(weights):
        return dict(list(weights.items())[1:])

    check = measure("C32", saved(fresh_kssm(prepared), tmp_path, torn))
    assert check.verdict == "fail" and "the checkpoint and the model disagree on" in check.got


def test_pruning_that_takes_the_best_is_caught(prepared, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "_logits_of_new_process", lambda path, tokens, folder: (mx.zeros(()), "")
    )
    monkeypatch.setattr(checkpoints, "logit_deviation", lambda a, b, scale: 0.0)
    monkeypatch.setattr(checkpoint, "read_pointer", lambda folder, name: None)
    check = measure("C32", fresh_kssm(prepared))
    assert (check.verdict, check.got) == ("fail", "pruned: the best")
    monkeypatch.setattr(checkpoint, "_is_pinned", lambda path: False)
    assert measure("C32", fresh_kssm(prepared)).got == "pruned: the best, the one of a signal"


def test_a_model_of_no_family_cannot_be_built_elsewhere(prepared):
    assert "this model is of none" in measure("C32", fresh(prepared)).got
