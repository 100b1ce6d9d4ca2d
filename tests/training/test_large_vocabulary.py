"""Where the vocabulary is large the logits are made in chunks: the same loss, gradient and evaluation."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx import models
from kssm_mlx.models.adapters import attach_lora
from kssm_mlx.models.base import head_of
from kssm_mlx.training import losses, step
from kssm_mlx.training.evaluation import evaluate
from kssm_mlx.training.loss_terms import parse_terms
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.step import make_gradient
from kssm_mlx.weights.quantize import quantize

V, B, T = 19, 2, 12
TOKENS = mx.random.randint(0, V, (B, T + 1), key=mx.random.key(0))


def one_byte(targets):
    return 1.0


def small(family: str):
    config = models.configure(family, "xs", vocab_size=V, context=T)
    return models.build(config, seed=3)


@pytest.fixture
def chunks_of_five(monkeypatch):
    monkeypatch.setattr(losses, "MOST_LOGITS", 5 * B * V)


def gradient(model):
    train = Train(batch_size=B, context=T)
    totals, _ = make_gradient(model, train)(model.trainable_parameters(), TOKENS, None, None)
    return totals


@pytest.mark.parametrize("family", ["kssm", "mamba", "rwkv", "rwkv7"])
def test_the_gradient_is_that_of_all_logits_at_once(family, monkeypatch):
    model = small(family)
    whole = gradient(model)
    monkeypatch.setattr(losses, "MOST_LOGITS", 5 * B * V)
    calls, project = [], model.project
    monkeypatch.setattr(model, "project", lambda hidden: calls.append(hidden.shape) or project(hidden))
    parts = gradient(model)
    assert {shape[1] for shape in calls} == {5, 2}
    np.testing.assert_allclose(parts.nats.item(), whole.nats.item(), rtol=1e-5)
    for (name, a), (_, b) in zip(tree_flatten(whole.grads), tree_flatten(parts.grads), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_frozen_head_is_taken_from_the_model(chunks_of_five):
    model = small("rwkv")
    model.head.freeze()
    assert not [name for name, _ in tree_flatten(gradient(model).grads) if name.startswith("head")]
    assert head_of(model, model.trainable_parameters())["head"]["weight"] is model.head.weight


@pytest.mark.parametrize("few_bits", [False, True])
def test_a_frozen_head_has_no_gradient_and_hands_on_what_others_get(few_bits, monkeypatch):
    """Of an embedding that is the head too; in few bits it can have none."""
    model = models.build(models.configure("mamba", "xs", vocab_size=V, overrides={"hidden_size": 32}))
    if few_bits:
        quantize(model, 4, group_size=32)
    attach_lora(model, 2, 4.0, kind="qlora" if few_bits else "lora")
    arrays = [
        (n, a + 0.1 * mx.random.normal(a.shape, key=mx.random.key(1)))
        for n, a in tree_flatten(model.trainable_parameters())
    ]
    model.load_weights(arrays, strict=False)
    whole = gradient(model)
    monkeypatch.setattr(losses, "MOST_LOGITS", 5 * B * V)
    heads, real = [], step.chunked_cross_entropy

    def noted(hidden, head, *rest):
        heads.append(head)
        return real(hidden, head, *rest)

    monkeypatch.setattr(step, "chunked_cross_entropy", noted)
    parts = gradient(model)
    assert heads == [{}]
    for (name, a), (_, b) in zip(tree_flatten(whole.grads), tree_flatten(parts.grads), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-3, atol=1e-5, err_msg=name)
        assert name.endswith(("lora_a", "lora_b")) and np.any(np.array(a))


@pytest.mark.parametrize("family", ["kssm", "mamba"])
def test_evaluation_is_the_same(family, monkeypatch):
    windows = [(np.array(TOKENS), None)]
    whole = evaluate(small(family), windows, one_byte)
    monkeypatch.setattr(losses, "MOST_LOGITS", 5 * B * V)
    assert evaluate(small(family), windows, one_byte) == pytest.approx(whole, rel=1e-4)


def test_a_vocabulary_of_fifty_thousand_is_cut_and_one_of_bytes_is_not():
    assert losses.chunk_for(4, 512, 50280) == 83
    assert losses.chunk_for(16, 128, 256) is None
    assert losses.chunk_for(1, 8, 1 << 30) == 1


def test_what_is_monitored_is_the_same_and_changes_no_gradient(chunks_of_five, monkeypatch):
    train, model = Train(batch_size=B, context=T), small("kssm")

    def watched(monitor: bool, **options):
        step = make_gradient(model, train, monitor=monitor, **options)
        return step(model.trainable_parameters(), TOKENS, None, None)[0]

    parts = watched(True)
    regular = watched(False, loss=parse_terms({"coherence": {"weight": 1.0, "target": 0.0, "width": 0.0}}))
    assert mx.array_equal(parts.grads["norm"]["weight"], watched(False).grads["norm"]["weight"]).item()
    assert regular.terms["term_coherence"].item() > 0  # terms of the trace leave the chunks alone
    monkeypatch.setattr(losses, "MOST_LOGITS", 1 << 24)
    assert parts.observed["U"].item() == pytest.approx(watched(True).observed["U"].item(), rel=1e-5)
