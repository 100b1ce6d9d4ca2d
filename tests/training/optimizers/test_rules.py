"""Lion and Adafactor against MLX's own, Muon against float64; what each keeps; exact resume; refusals."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest
from mlx.utils import tree_map

from kssm_mlx import models
from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.models.base import flatten
from kssm_mlx.training.budget.sums import sum_bytes
from kssm_mlx.training.optimizers import updates
from kssm_mlx.training.optimizers.rules import ADAMW, MUON, orthogonalize
from kssm_mlx.training.recipe import parse
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import from_arrays, initial_state, to_arrays
from kssm_mlx.training.step import make_step
from tests.support.tiny_model import random_tokens
from tests.support.tiny_run import tiny_run

NAMES = ("adamw", "lion", "adafactor", "muon")
LR = 0.01
pytestmark = pytest.mark.usefixtures("uncompiled")


def small_model():
    overrides = {"d_model": 16, "n_layers": 2, "n_groups": 8, "mlp_hidden": 24}
    return models.build(models.configure("kssm", "xs", vocab_size=11, context=32, overrides=overrides))


def leaves(seed: int) -> dict:
    keys = mx.random.split(mx.random.key(seed), 3)
    shapes = {"matrix": (6, 4), "bias": (4,), "kernel": (3, 2, 5)}
    return {n: mx.random.normal(s, key=k) for (n, s), k in zip(shapes.items(), keys, strict=True)}


def ours(train: Train, steps: int) -> dict:
    """Parameters after some updates with random gradients, everything decaying."""

    class Bag:
        model_type, no_decay = "bag", ()

        def trainable_parameters(self):
            return leaves(0)

    optimizer, params = updates.make_optimizer(Bag(), train), leaves(0)  # type: ignore[arg-type]  as a model
    opt = updates.initial_moments(optimizer, params)
    for i in range(steps):
        params, opt = updates.update(optimizer, params, leaves(i + 1), opt, mx.array(LR))
    return params


def theirs(optimizer, steps: int) -> dict:
    params = leaves(0)
    for i in range(steps):
        params = optimizer.apply_gradients(leaves(i + 1), params)
    return params


def assert_close(got: dict, expected: dict, **tolerance):
    for name, value in got.items():
        np.testing.assert_allclose(np.array(value), np.array(expected[name]), err_msg=name, **tolerance)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_lion_step_by_step_is_mlxs(steps):
    train = Train(optimizer="lion", weight_decay=0.3, decay="all")
    assert (train.beta1, train.beta2) == (0.9, 0.99)
    expected = theirs(mlx.optimizers.Lion(LR, [0.9, 0.99], weight_decay=0.3), steps)
    assert_close(ours(train, steps), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_adafactor_step_by_step_is_mlxs(steps):
    mlxs = mlx.optimizers.Adafactor(LR, weight_decay=0.3, scale_parameter=False, relative_step=False)
    train = Train(optimizer="adafactor", weight_decay=0.3, decay="all")
    assert_close(ours(train, steps), theirs(mlxs, steps), rtol=2e-6, atol=1e-7)


def polar(x: np.ndarray) -> np.ndarray:
    """Five steps of Newton and Schulz in float64, written with the singular values."""
    u, s, v = np.linalg.svd(x / (np.linalg.norm(x) + 1e-7), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_muon_is_the_same_in_float64(steps):
    train = Train(optimizer="muon", weight_decay=0.3, momentum=0.9)
    matrix = np.array(leaves(0)["matrix"], np.float64)
    m = np.zeros_like(matrix)
    for i in range(steps):
        g = np.array(leaves(i + 1)["matrix"], np.float64)
        m = 0.9 * m + 0.1 * g
        matrix -= LR * (0.2 * 6**0.5 * polar(0.9 * m + 0.1 * g) + 0.3 * matrix)
    got = ours(train, steps)
    np.testing.assert_allclose(np.array(got["matrix"]), matrix, rtol=1e-5, atol=1e-6)
    rest = ours(Train(weight_decay=0.3), steps)  # AdamW's
    assert all(mx.array_equal(got[name], rest[name]) for name in ("bias", "kernel"))


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_what_is_made_orthogonal_has_singular_values_about_one(shape):
    x = np.array(mx.random.normal(shape, key=mx.random.key(1)))
    s = np.linalg.svd(np.array(orthogonalize(mx.array(x))), compute_uv=False)
    assert s.min() > 0.6 and s.max() < 1.2
    assert not np.any(np.array(orthogonalize(mx.zeros(shape))))  # no gradient, no direction, no NaN


def test_muon_moves_matrices_between_hidden_states_and_adamw_the_rest():
    model = small_model()
    rules = updates.make_optimizer(model, Train(optimizer="muon")).rules
    assert {rules[f"blocks.0.{n}"] for n in ("mixer.in_proj.weight", "mlp.down.weight")} == {MUON}
    outside = ("embedding.weight", "head.weight", "norm.weight", "blocks.0.mixer.conv_weight")
    assert {rules[name] for name in outside} == {ADAMW}
    assert all(rule is ADAMW for name, rule in rules.items() if name.endswith(model.no_decay))


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_resumes_bit_for_bit_and_refuses_what_is_not_finite(name):
    model, train = small_model(), Train(optimizer=name, learning_rate=3e-3, warmup=0, schedule="constant")
    tokens, step = random_tokens(), make_step(model, train, compile=False)

    def go_on(state, steps):
        losses = []
        for _ in range(steps):
            state, metrics = step(state, tokens)
            mx.eval(state)
            losses.append(metrics["loss"].item())
        return state, losses

    half, losses = go_on(initial_state(model, train), 5)
    whole, more = go_on(half, 3)
    assert more[-1] < losses[0]
    trained, rest = to_arrays(half)
    again, same = go_on(from_arrays(dict(reversed(trained.items())), dict(reversed(rest.items()))), 3)
    assert same == more
    one, other = ({k: v for part in to_arrays(s) for k, v in part.items()} for s in (whole, again))
    assert one.keys() == other.keys() and all(mx.array_equal(one[n], other[n]) for n in one)

    bad = half._replace(params=tree_map(lambda p: p * mx.array(np.nan), half.params))
    kept, metrics = step(bad, tokens)
    assert metrics["skipped"].item() == 1 and kept.opt["skips"].item() == 1
    before, after = flatten(half.opt), flatten(kept.opt)
    assert all(mx.array_equal(before[n], after[n]) for n in before if n != "skips")


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_a_batch_give_the_update_of_the_whole(name):
    """Signs and quotients amplify the rounding of a sum: Lion's may differ where c is nothing but that."""
    model, moved = small_model(), []
    for pieces in (1, 2):
        train = Train(optimizer=name, batch_size=4, accumulation=pieces, warmup=0, schedule="constant")
        state, metrics = make_step(model, train, compile=False)(
            initial_state(model, train), random_tokens(4, seed=3)
        )
        moved.append((flatten(state.params), metrics["loss"].item()))
    (one, loss), (other, same) = moved
    assert loss == pytest.approx(same, rel=1e-5)
    far = [mx.mean(mx.abs(one[n] - other[n]) > 1e-4).item() for n in one]
    assert np.mean(far) < 0.01


@pytest.mark.parametrize(
    "name, per_parameter", [("adamw", (8, 8)), ("lion", (4, 4)), ("adafactor", (0, 3)), ("muon", (4, 8))]
)
def test_the_sums_count_what_is_kept(name, per_parameter):
    model, train = small_model(), Train(optimizer=name)
    state, sums = initial_state(model, train), sum_bytes(model, train)
    assert sums.optimizer == sum(a.nbytes for a in flatten(state.opt).values()) - 8  # count and skips
    least, most = per_parameter
    assert least * sums.trained <= sums.optimizer <= most * sums.trained
    assert sums.checkpoint == 4 * sums.trained + sums.optimizer


def test_resuming_with_another_optimizer_is_refused(tmp_path):
    folder, few = tmp_path / "run", {"steps": 4}
    tiny_run(folder, train={**few, "optimizer": "lion"})
    with pytest.raises(CheckpointError, match=r"trained with train.optimizer = 'lion', is now .* 'muon'"):
        tiny_run(folder, train={**few, "optimizer": "muon"}, resume=True, allow=True)


def test_an_unknown_optimizer_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"train.optimizer: .*'adamw', 'lion', 'adafactor' or 'muon', got"):
        parse({"train": {"optimizer": "sgd"}})
