"""Sums by hand, and against what a run really holds and writes."""

from __future__ import annotations

import mlx.core as mx
import pytest

from kssm_mlx import models
from kssm_mlx.models.adapters import attach_lora
from kssm_mlx.models.base import flatten
from kssm_mlx.runs import layout
from kssm_mlx.training.budget.sums import kept_checkpoints, product_flops, state_bytes, sum_bytes
from kssm_mlx.training.recipe import parse
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state, to_arrays
from tests.support.exported import SMALL
from tests.support.tiny_run import tiny_run


def small(family: str, **overrides):
    known = SMALL.get(family, {}) | overrides
    return models.build(models.configure(family, "xs", vocab_size=256, context=32, overrides=known))


@pytest.mark.parametrize("family", ["kssm", "kssm_v3", "mamba", "mamba2", "rwkv", "rwkv7", "gru", "hybrid"])
def test_the_sums_are_those_of_the_state(family):
    model = small(family)
    state, sums = initial_state(model, Train()), sum_bytes(model)
    trained, rest = to_arrays(state)
    files = sum(a.nbytes for a in [*trained.values(), *rest.values()])
    assert sums.optimizer == pytest.approx(sum(a.nbytes for a in flatten(state.opt).values()), abs=64)
    assert sums.checkpoint == pytest.approx(files, abs=64)  # beside it: key, step and the like
    assert sums.weights == sum(a.nbytes for a in flatten(model.parameters()).values())
    assert sums.least == sums.weights + sums.optimizer + sums.gradients
    assert sums.trained + sums.frozen == models.count_parameters(model.args)


def test_nothing_is_allocated_for_the_sums():
    config = models.configure("kssm", "l", vocab_size=50000, overrides={"d_model": 8192, "n_layers": 48})
    before = mx.get_active_memory()
    sums = sum_bytes(models.outline(config))
    assert sums.weights > 10**10 and sums.optimizer == 2 * sums.weights
    assert mx.get_active_memory() - before < sums.weights / 100


def test_what_is_frozen_has_neither_gradient_nor_moments():
    model = small("mamba")
    whole = sum_bytes(model)
    attach_lora(model, 2, 4.0)
    sums = sum_bytes(model)
    assert sums.frozen == whole.trained and sums.trained > 0
    assert sums.gradients == 4 * sums.trained and sums.optimizer == 8 * sums.trained
    assert sums.checkpoint == 12 * sums.trained


def test_weights_in_half_precision_have_masters():
    model = small("gru")
    full = sum_bytes(model)
    model.set_dtype(mx.bfloat16)
    half = sum_bytes(model)
    assert half.weights == full.weights / 2 and half.optimizer == full.optimizer + full.weights


def test_a_recurrence_carries_the_same_after_any_length_and_attention_more():
    recurrent = state_bytes(small("gru"))
    assert recurrent.growth == 0 and recurrent.first == recurrent.after(1000) > 0
    attention = state_bytes(small("transformer", d_model=32, n_layers=2, n_heads=2))
    assert attention.growth == 2 * (2 * 32 * 4 + 4)  # keys, values and position, of two blocks
    assert attention.after(3) == attention.first + 2 * attention.growth


def test_flops_by_hand():
    D, V = 32, 256
    for tied in (True, False):  # the embedding is the head, or it is only looked up; positions always are
        model = small("transformer", d_model=D, n_layers=1, n_heads=2, tie_embeddings=tied)
        assert product_flops(model) == 2 * (4 * D * D + 2 * D * model.args.wide + V * D)


def test_flops_of_a_step_count_what_is_frozen_and_what_is_computed_again():
    model = small("mamba")
    forward, step = product_flops(model), product_flops(model, Train())
    assert step == 3 * forward
    again = product_flops(model, Train(checkpoint_blocks=True))
    assert again == step + forward - 2 * model.args.vocab_size * model.args.hidden_size  # all but the head
    model.freeze()
    assert product_flops(model, Train()) == 2 * forward


def test_as_many_checkpoints_as_are_kept_the_best_and_one_more():
    def kept(steps, every, keep):
        return kept_checkpoints(parse({"train": {"steps": steps}, "save": {"every": every, "keep": keep}}))

    assert kept(100, 10, 3) == (3, 5)
    assert kept(25, 10, 3) == (3, 3)  # and one at the end
    assert kept(10, 10, 3) == (1, 1)


def test_a_run_writes_as_much_as_was_said(tmp_path):
    result = tiny_run(tmp_path / "run")
    trained, rest = to_arrays(result.state)
    said = sum(a.nbytes for a in [*trained.values(), *rest.values()])
    (latest, *_) = sorted(layout.list_checkpoints(tmp_path / "run" / "checkpoints").items(), reverse=True)
    files = latest[1].glob("*.safetensors")
    assert sum(p.stat().st_size for p in files) == pytest.approx(said, abs=4096)  # headers
