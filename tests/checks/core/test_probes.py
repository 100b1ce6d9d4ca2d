"""What the probes of checks are made of: ids, logits, matrices that begin at zero, limits by precision."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from kssm_mlx.checks.core import conditions, probes
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, require_value
from tests.support.fakes import TinyRecurrent


@pytest.fixture
def context() -> Context:
    return Context(TinyRecurrent(vocab_size=7))


def test_ids_are_of_the_whole_vocabulary_and_of_their_stream(context):
    ids = probes.random_tokens(context, 8, 64)
    assert set(ids.flat) == set(range(7))
    assert np.array_equal(ids, probes.random_tokens(context, 8, 64))
    assert not np.array_equal(ids, probes.random_tokens(context, 8, 64, stream=1))


def test_swapped_ids_are_other_ids_of_the_vocabulary():
    ids = np.arange(700, dtype=np.int32).reshape(7, 100) % 7
    other = probes.swap_token(ids, 7)
    assert (other != ids).all() and other.min() >= 0 and other.max() < 7


def test_logits_are_those_of_the_mode_that_was_asked_for():
    class Loud(TinyRecurrent):
        def __call__(self, tokens, cache=None):
            return super().__call__(tokens, cache) + float(self.training)

    model, ids = Loud(vocab_size=7), np.zeros((1, 3), np.int32)
    gap = probes.logits_of(model, ids, training=True) - probes.logits_of(model, ids)
    assert gap == pytest.approx(1, abs=1e-5)
    assert model.training


def test_only_matrices_of_zeros_are_perturbed_and_they_are_put_back(context):
    context.model.head.weight = mx.zeros_like(context.model.head.weight)
    before = probes.flatten(context.model.parameters())
    seen = {}

    @probes.perturb_zero_init
    def measure(ctx):
        seen.update(probes.flatten(ctx.model.parameters()))

    measure(context)
    moved = [name for name in before if not mx.array_equal(before[name], seen[name])]
    assert moved == ["head.weight"]
    width = seen["head.weight"].shape[1]
    assert mx.std(seen["head.weight"]).item() == pytest.approx(0.5 * width**-0.5, rel=0.2)
    assert mx.array_equal(context.model.head.weight, before["head.weight"])


def test_one_matrix_in_half_precision_takes_the_wider_limit(context):
    assert probes.dtype_tolerance(context.model, 1e-4) == 1e-4
    context.model.norm.weight = context.model.norm.weight.astype(mx.bfloat16)
    assert probes.dtype_tolerance(context.model, 1e-4) == 1e-4
    context.model.head.weight = context.model.head.weight.astype(mx.bfloat16)
    assert probes.dtype_tolerance(context.model, 1e-4, half=0.5) == 0.5


def test_the_divergence_of_two_predictions():
    p, q = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert conditions.mean_kl((p + 5)[None, None], (q - 3)[None, None]) == pytest.approx(expected)
    # Logits far apart: without the largest taken off, exp would overflow.
    assert conditions.log_softmax(np.array([1000.0, 0.0])) == pytest.approx([0.0, -1000.0])


def test_what_the_head_reads_needs_a_model_that_says_it():
    class Speaks(TinyRecurrent):
        def hidden(self, tokens, cache=None, intervention=None):
            return mx.full((1, 2, 3), 4.0), cache, {}

    tokens = mx.zeros((1, 2), mx.int32)
    assert (conditions.hidden_of(Speaks(), tokens) == 4).all()
    with pytest.raises(NotMeasurable, match=r"no hidden\(\)"):
        conditions.hidden_of(TinyRecurrent(), tokens)


def test_probes_are_as_long_as_the_rows_of_the_run():
    recipe = SimpleNamespace(train=SimpleNamespace(context=48))
    assert probes.probe_length(Context(recipe=recipe)) == 48
    assert probes.probe_length(Context(recipe=recipe), most=32) == 32
    assert probes.probe_length(Context()) == 64


def test_what_is_absent_is_named():
    assert require_value(0, "seed") == 0
    with pytest.raises(NotMeasurable, match="needs runs, none given"):
        require_value(None, "runs")


def test_a_verdict_is_plain_json():
    numbers = {"a": np.float32(0.5), 3: mx.array(2), "c": (np.int64(1), math.inf)}
    written = Check("X1", "t", "P", "pass", "", "", numbers=numbers).to_json()
    assert json.loads(json.dumps(written))["numbers"] == {"a": 0.5, "3": 2, "c": [1, "inf"]}


def test_a_context_knows_how_far_its_model_is():
    assert Context().step == 0 and not Context().trained
    assert Context(history=[{"step": 3}, {"kind": "event"}, {"step": 9}]).step == 9
    assert Context(history=[{"kind": "event"}]).step == 0
    assert Context(model=nn.Identity(), base_digest="d" * 64).trained
