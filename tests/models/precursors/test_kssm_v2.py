"""K-SSM v2: its equations, its dropout, and the published intervention that cannot do anything."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.models.base import Clamp, Intervention
from tests.models.precursors.test_kssm_v1 import gelu
from tests.support.small_kssm import tokens
from tests.support.small_precursors import precursor

pytestmark = pytest.mark.usefixtures("uncompiled")


def layer_norm(x, weight, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def test_the_equations_in_numpy():
    model, ids = precursor("kssm_v2"), tokens(2, 7)
    p = {name: np.array(a, np.float64) for name, a in tree_flatten(model.parameters())}

    def affine(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"])

    x = p["embedding.weight"][np.array(ids)] + p["positions"][:7]
    for i in range(2):
        z = norm(x, f"blocks.{i}.bank_norm")
        theta = p[f"blocks.{i}.bank.omega"] + affine(z, f"blocks.{i}.bank.to_frequency")
        K = 2 / (1 + np.exp(-affine(z, f"blocks.{i}.bank.to_coupling")))
        Z = np.exp(1j * theta).mean(-1, keepdims=True)
        theta = theta + K * np.abs(Z) * np.sin(np.angle(Z) - theta)
        x = x + affine(np.concatenate([np.sin(theta), np.cos(theta)], -1), f"blocks.{i}.bank.readout")
        h = gelu(affine(norm(x, f"blocks.{i}.mlp_norm"), f"blocks.{i}.up"))
        x = x + affine(h, f"blocks.{i}.down")
    logits = norm(x, "norm") @ p["embedding.weight"].T
    np.testing.assert_allclose(model(ids), logits, atol=5e-5)


@pytest.mark.parametrize("F", [0.05, 0.9])
def test_forcing_R_before_a_norm_does_nothing(F):
    """A positive scale is what LayerNorm removes: the published causality test could not have passed."""
    model, ids = precursor("kssm_v2"), tokens(4, 30)
    free = model(ids)
    forced = model.forward(ids, intervention=Intervention((Clamp("forced_R", F),))).logits
    assert mx.abs(forced - free).max().item() <= 3e-3 * mx.std(free).item()
    assert not mx.array_equal(forced, free)  # it was applied


def test_a_key_decides_what_is_dropped():
    model, ids = precursor("kssm_v2").train(), tokens(2, 9)
    one, same, other = (model.forward(ids, key=mx.random.key(k)).logits for k in (1, 1, 2))
    assert mx.array_equal(one, same) and mx.abs(one - other).max().item() > 1e-3
    assert mx.array_equal(model.eval().forward(ids, key=mx.random.key(1)).logits, model(ids))
