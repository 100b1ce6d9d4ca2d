"""AdamW against MLX's own and against float64; decay by name; clipping by the global norm."""

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest
from mlx.utils import tree_map

from kssm_mlx.models.base import flatten
from kssm_mlx.training.optimizers import gradients, updates
from kssm_mlx.training.optimizers.rules import ADAMW
from kssm_mlx.training.recipe_sections import Train

HYPER = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}


def tree(seed: int) -> dict:
    keys = mx.random.split(mx.random.key(seed), 3)
    return {
        "proj": {
            "weight": mx.random.normal((3, 4), key=keys[0]),
            "bias": mx.random.normal((4,), key=keys[1]),
        },
        "omega": mx.random.normal((2, 5), key=keys[2]),
    }


def adamw(params: dict, no_decay=("omega",)) -> updates.Optimizer:
    mask = flatten(updates.decay_mask(params, no_decay))
    decays, rates = {name: 0.1 * bool(decays) for name, decays in mask.items()}, dict.fromkeys(mask, 1.0)
    return updates.Optimizer(Train(**HYPER), dict.fromkeys(mask, ADAMW), decays, rates, {})


def begun(params: dict, **options) -> tuple:
    """The optimizer and its state before the first update."""
    optimizer = adamw(params, **options)
    return optimizer, updates.initial_moments(optimizer, params)


def test_ten_steps_equal_mlx_adamw_where_everything_decays():
    params, theirs = {"w": tree(0)["omega"]}, mlx.optimizers.AdamW(0.01, [0.9, 0.95], 1e-8, 0.1, True)
    ours, (adam, opt) = params, begun(params, no_decay=())
    for i in range(10):
        grads = {"w": tree(i + 1)["omega"]}
        ours, opt = updates.update(adam, ours, grads, opt, mx.array(0.01))
        params = theirs.apply_gradients(grads, params)
    np.testing.assert_allclose(np.array(ours["w"]), np.array(params["w"]), rtol=2e-6, atol=1e-7)


def test_ten_steps_equal_float64_with_and_without_decay():
    params = tree(0)
    adam, opt = begun(params)
    exact = {name: np.array(p, np.float64) for name, p in flatten(params).items()}
    m, v = ({name: np.zeros_like(p) for name, p in exact.items()} for _ in range(2))
    for n in range(1, 11):
        grads = tree(n)
        params, opt = updates.update(adam, params, grads, opt, mx.array(0.01))
        for name, g in flatten(grads).items():
            g = np.array(g, np.float64)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            direction = m[name] / (1 - 0.9**n) / (np.sqrt(v[name] / (1 - 0.95**n)) + 1e-8)
            decay = 0.1 if name == "proj.weight" else 0.0
            exact[name] -= 0.01 * (direction + decay * exact[name])
    for name, p in flatten(params).items():
        np.testing.assert_allclose(np.array(p), exact[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert opt["count"].item() == 10


def test_only_matrices_outside_the_list_decay():
    params = {
        "mixer": {"log_gamma": mx.zeros((2, 2)), "weight": mx.zeros((2, 2)), "bias": mx.zeros(2)},
        "norm": {"weight": mx.zeros(2)},
    }
    mask = flatten(updates.decay_mask(params, ("gamma",)))
    assert mask == {
        "mixer.log_gamma": False,
        "mixer.weight": True,
        "mixer.bias": False,
        "norm.weight": False,
    }


def test_decay_does_not_pass_through_the_moments():
    """Decoupled: with a zero gradient a matrix shrinks by exactly lr · decay and its moments stay zero."""
    params = tree(0)
    zero = tree_map(mx.zeros_like, params)
    adam, opt = begun(params)
    moved, opt = updates.update(adam, params, zero, opt, mx.array(0.5))
    np.testing.assert_allclose(
        np.array(moved["proj"]["weight"]), 0.95 * np.array(params["proj"]["weight"]), rtol=1e-6
    )
    assert mx.array_equal(moved["omega"], params["omega"]).item()
    assert mx.all(opt["m"]["proj"]["weight"] == 0).item()


def test_clipping_scales_to_the_limit_and_tells_the_norm_before():
    grads = tree(3)
    size = float(np.sqrt(sum((np.array(g, np.float64) ** 2).sum() for g in flatten(grads).values())))
    clipped, norm = gradients.clip_gradient(grads, 0.5)
    assert norm.item() == pytest.approx(size, rel=1e-6)
    assert gradients.global_norm(clipped).item() == pytest.approx(0.5, rel=1e-6)
    ratios = [(c / g).reshape(-1) for c, g in zip(flatten(clipped).values(), flatten(grads).values())]
    np.testing.assert_allclose(np.concatenate([np.array(r) for r in ratios]), 0.5 / size, rtol=1e-5)


def test_clipping_leaves_a_small_gradient_and_a_zero_one_as_they_are():
    grads = tree(3)
    for scale in (1e-3, 0.0):
        small = tree_map(lambda g, scale=scale: g * scale, grads)
        clipped, _ = gradients.clip_gradient(small, 1.0)
        assert all(
            mx.array_equal(a, b).item() for a, b in zip(flatten(clipped).values(), flatten(small).values())
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_update_if_keeps_everything_but_the_count_of_skips(bad):
    params = tree(0)
    adam, opt = begun(params)
    params, opt = updates.update(adam, params, tree(1), opt, mx.array(0.01))
    grads = tree_map(lambda g: g * mx.array(bad), tree(2))
    finite = mx.isfinite(gradients.global_norm(grads))
    kept, after = updates.update_if(finite, adam, params, grads, opt, mx.array(0.01))
    for old, new in [(params, kept), (opt["m"], after["m"]), (opt["v"], after["v"])]:
        assert all(mx.array_equal(a, b).item() for a, b in zip(flatten(old).values(), flatten(new).values()))
    assert (after["count"].item(), after["skips"].item()) == (1, 1)
