"""The average that is evaluated: by hand, in checkpoints, resumed; and a limit for each component."""

from __future__ import annotations

import shutil

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.data.batches import evaluation_windows
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.models.base import flatten
from kssm_mlx.training.budget.sums import sum_bytes
from kssm_mlx.training.evaluation import make_evaluator
from kssm_mlx.training.optimizers.average import memory
from kssm_mlx.training.optimizers.gradients import clip_gradient, global_norm
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state, to_arrays
from kssm_mlx.training.step import make_step
from tests.support.tiny_model import TinyModel, random_tokens
from tests.support.tiny_run import rows, saved, tiny_model, tiny_run

pytestmark = pytest.mark.usefixtures("uncompiled")


def test_the_average_of_five_updates_by_hand():
    model, train = TinyModel(), Train(ema=0.3, learning_rate=0.05, warmup=0, schedule="constant")
    state, step = initial_state(model, train), make_step(model, train, compile=False)
    average = {n: np.array(p, np.float64) for n, p in flatten(state.params).items()}
    for n in range(1, 6):
        state, _ = step(state, random_tokens())
        kept = min(0.3, (1 + n) / (10 + n))  # 2/11, 3/12, 4/13 and then 0.3
        average = {k: kept * average[k] + (1 - kept) * np.array(p) for k, p in flatten(state.params).items()}
    for name, a in flatten(state.evaluated).items():
        np.testing.assert_allclose(np.array(a), average[name], rtol=1e-5, atol=1e-6)
    assert [memory(0.3, n) for n in (1, 3, 4)] == [2 / 11, 0.3, 0.3]


def test_a_gradient_that_is_not_finite_leaves_the_average():
    model, train = TinyModel(), Train(ema=0.9)
    state, step = initial_state(model, train), make_step(model, train, compile=False)
    state, _ = step(state, random_tokens())
    broken = state._replace(params=state.params | {"log_rate": state.params["log_rate"] * mx.array(np.nan)})
    after, metrics = step(broken, random_tokens())
    assert metrics["skipped"].item() == 1
    one, other = flatten(state.average), flatten(after.average)
    assert all(mx.array_equal(one[n], other[n]) for n in one)


def test_it_is_evaluated_and_exported_and_resumes_bit_for_bit(tmp_path):
    folder, plan = tmp_path / "run", {"steps": 8, "ema": 0.9}
    result = tiny_run(folder, train=plan)
    state, data = result.state, TokenData.open(tmp_path / "data")

    def nats(params):
        windows = evaluation_windows(data.validation, 256, 16, 4)
        model = tiny_model(data.vocab_size)
        return make_evaluator(model)(params, windows, data.bytes_per_target)["nats_per_token"]

    assert nats(state.average) == result.evaluation["nats_per_token"] != nats(state.params)
    files = saved(folder).snapshot.tensors
    trained, rest = to_arrays(state)
    assert all(mx.array_equal(files["model"][n], a) for n, a in flatten(state.average).items())
    assert all(mx.array_equal(files["optimizer"][f"params.{n}"], a) for n, a in flatten(state.params).items())
    sums = sum_bytes(tiny_model(data.vocab_size), Train(ema=0.9))
    assert sums.checkpoint == pytest.approx(
        sum(a.nbytes for a in [*trained.values(), *rest.values()]), abs=64
    )

    before = rows(folder, "train", "eval")
    shutil.rmtree(folder / "checkpoints" / "step_00000008")
    again = tiny_run(folder, train=plan, resume=True)
    assert again.started_at == 4 and rows(folder, "train", "eval") == before
    unbroken = to_arrays(state)
    for one, other in zip(unbroken, to_arrays(again.state), strict=True):
        assert one.keys() == other.keys() and all(mx.array_equal(one[n], other[n]) for n in one)


def test_an_average_begins_or_ends_where_a_change_is_allowed(tmp_path):
    folder, steady = tmp_path / "run", {"schedule": "constant"}
    first = tiny_run(folder, train={"steps": 4, **steady})
    more = tiny_run(folder, train={"steps": 8, "ema": 0.9, **steady}, resume=True, allow=True)
    assert more.state.average is not None and first.state.average is None
    last = tiny_run(folder, train={"steps": 12, **steady}, resume=True, allow=True)
    assert last.state.average is None and last.step == 12
    other = tiny_run(tmp_path / "other", train={"steps": 12, **steady})
    # Whatever was averaged on the way, the training was the same.
    assert rows(folder, "train") == rows(tmp_path / "other", "train")
    one, same = flatten(last.state.params), flatten(other.state.params)
    assert one.keys() == same.keys() and all(mx.array_equal(one[n], same[n]) for n in one)


def test_a_component_is_clipped_to_its_own_norm_and_the_rest_is_not():
    grads = {"a": mx.array([3.0, 4.0]), "b": {"c": mx.array([6.0]), "d": mx.array([8.0])}}
    clipped, norm = clip_gradient(grads, 100.0, {"b": (5.0, ["b.c", "b.d"])})
    assert norm.item() == pytest.approx(125**0.5)  # before anything
    assert mx.array_equal(clipped["a"], grads["a"])
    assert [clipped["b"][k].item() for k in "cd"] == pytest.approx([3.0, 4.0])
    both, _ = clip_gradient(grads, 1.0, {"b": (5.0, ["b.c", "b.d"])})
    assert global_norm(both).item() == pytest.approx(1.0)
    assert both["a"][0].item() == pytest.approx(3 / 50**0.5)
    loose, _ = clip_gradient(grads, 100.0, {"b": (50.0, ["b.c", "b.d"])})
    assert loose["b"]["d"].item() == 8.0


def test_the_limit_of_a_component_holds_in_a_step():
    """With momentum off and nothing normalised an update shows the gradient: Lion's sign would not."""
    moved = {}
    for limit in (None, 1e-6):
        groups = {"head": {"clip_norm": limit}}
        train = Train(groups=groups, clip=100.0, epsilon=1.0, warmup=0, schedule="constant", weight_decay=0)
        model = TinyModel()
        start, step = initial_state(model, train), make_step(model, train, compile=False)
        state, metrics = step(start, random_tokens())
        before, after = flatten(start.params), flatten(state.params)
        moved[limit] = {n: mx.max(mx.abs(after[n] - before[n])).item() for n in after}
        moved[limit]["norm"] = metrics["grad_norm"].item()
    assert moved[1e-6]["norm"] == moved[None]["norm"]
    assert moved[1e-6]["head.weight"] < 1e-3 * moved[None]["head.weight"]
    assert moved[1e-6]["embedding.weight"] == moved[None]["embedding.weight"] > 0
