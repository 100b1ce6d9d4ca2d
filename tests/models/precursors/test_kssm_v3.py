"""K-SSM v3: its algebra, its clamp, its noise, and the R that knows nothing of the token."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.models import build, configure
from kssm_mlx.models.base import with_parameters
from kssm_mlx.models.precursors.kssm_v3 import solve_fixed_points
from tests.models.precursors.test_kssm_v1 import gelu
from tests.models.precursors.test_kssm_v2 import layer_norm
from tests.support.small_kssm import assert_close, tokens
from tests.support.small_precursors import precursor

pytestmark = pytest.mark.usefixtures("uncompiled")


def test_u_solves_the_system_that_is_left_at_y_zero():
    p = np.random.default_rng(0).normal(size=(5, 4, 10))
    a, b, c, d, e, f, g, h, _, _ = np.moveaxis(p, -1, 0)
    matrix = np.stack([np.stack([a, c], -1), np.stack([e, g], -1)], -2)
    expected = np.linalg.solve(matrix, np.stack([d, h], -1)[..., None])[..., 0, 0]
    Delta, u = solve_fixed_points(mx.array(p, mx.float32))
    np.testing.assert_allclose(u[..., 0], expected, rtol=1e-3)
    np.testing.assert_allclose(Delta[..., 0], b * g - c * f, atol=1e-5)


def test_the_bank_in_numpy():
    model = precursor("kssm_v3", noise="off", u_floor=0.3)
    bank = model.blocks[0].bank
    z = mx.random.normal((2, 3, 32), key=mx.random.key(0))
    y, trace = bank(z)
    p = {name: np.array(a, np.float64) for name, a in tree_flatten(bank.parameters())}
    u = np.clip(np.array(trace["u_raw"], np.float64), 0.3, 10)
    theta = p["omega"] + np.array(z, np.float64).mean(-1, keepdims=True)
    Z = np.exp(1j * theta).mean(-1, keepdims=True)
    theta = theta + 2 / (1 + np.exp(-u)) * np.abs(Z) * np.sin(np.angle(Z) - theta)
    Z = np.stack([np.exp(1j * n * theta).mean(-1) for n in range(1, 9)], -1)
    features = np.concatenate([Z.real, Z.imag, np.abs(Z)], -1)
    np.testing.assert_allclose(y, features @ p["readout.weight"].T + p["readout.bias"], atol=1e-5)
    np.testing.assert_allclose(trace["R"], np.abs(Z[..., :1]), atol=1e-6)


@pytest.mark.parametrize("variant", ["bistable", "monostable"])
def test_the_whole_model_in_numpy(variant):
    model, ids = precursor("kssm_v3", variant=variant), tokens(2, 7)
    p = {name: np.array(a, np.float64) for name, a in tree_flatten(model.parameters())}

    def affine(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"])

    x = p["embedding.weight"][np.array(ids)] + p["positions"][:7]
    for i in range(2):
        z = norm(x, f"blocks.{i}.bank_norm")
        a, _, c, d, e, _, g, h, _, _ = np.moveaxis(affine(z, f"blocks.{i}.bank.to_parameters"), -1, 0)
        u = (d * g - c * h) / (a * g - c * e + 1e-6)
        u = (np.clip(u, 0.1, 10) if variant == "bistable" else u)[..., None]
        theta = p[f"blocks.{i}.bank.omega"] + z.mean(-1, keepdims=True)
        Z = np.exp(1j * theta).mean(-1, keepdims=True)
        theta = theta + 2 / (1 + np.exp(-u)) * np.abs(Z) * np.sin(np.angle(Z) - theta)
        Z = np.stack([np.exp(1j * n * theta).mean(-1) for n in range(1, 9)], -1)
        x = x + affine(np.concatenate([Z.real, Z.imag, np.abs(Z)], -1), f"blocks.{i}.bank.readout")
        x = x + affine(gelu(affine(norm(x, f"blocks.{i}.mlp_norm"), f"blocks.{i}.up")), f"blocks.{i}.down")
    np.testing.assert_allclose(model(ids), norm(x, "norm") @ p["embedding.weight"].T, atol=1e-3)


def test_the_control_differs_by_the_clamp_alone():
    ids = tokens(4, 30)
    bistable, control = (
        precursor("kssm_v3", variant=v).forward(ids).trace for v in ("bistable", "monostable")
    )
    u, raw = (np.array(bistable[f"block00/{name}"]) for name in ("u", "u_raw"))
    assert raw.min() < 0.1 < raw.max()
    np.testing.assert_allclose(u, np.clip(raw, 0.1, 10))
    np.testing.assert_array_equal(control["block00/u"], raw)
    np.testing.assert_allclose(bistable["block00/K"], 2 / (1 + np.exp(-u)), atol=1e-6)
    inside = u == raw
    np.testing.assert_array_equal(
        np.array(control["block00/R"])[inside], np.array(bistable["block00/R"])[inside]
    )


def test_on_its_floor_u_has_no_gradient():
    """The published "edge surfing at u = 0.1": neither the loss nor the barrier can move u from there."""
    bank = precursor("kssm_v3", noise="off").blocks[0].bank
    z = mx.random.normal((2, 30, 32), key=mx.random.key(0))

    def u_where(low: bool):
        def total(p):
            _, trace = with_parameters(bank, p, lambda: bank(z))
            below = trace["u_raw"] < 0.1
            return mx.sum(mx.where(below if low else ~below, trace["u"], 0.0))

        return mx.grad(total)(bank.trainable_parameters())["to_parameters"]["weight"]

    assert mx.abs(u_where(low=True)).max().item() == 0
    assert mx.abs(u_where(low=False)).max().item() > 0.1


def test_two_of_ten_numbers_are_never_read_and_two_by_the_regulariser_only():
    bank = precursor("kssm_v3", noise="off").blocks[0].bank
    z = mx.random.normal((2, 9, 32), key=mx.random.key(0))

    def rows(read):
        total = lambda p: with_parameters(bank, p, lambda: mx.sum(read(*bank(z))))  # noqa: E731
        g = mx.grad(total)(bank.trainable_parameters())["to_parameters"]["weight"]
        return {name for name, row in zip("abcdefghij", mx.abs(g).max(axis=1).tolist()) if row > 0}

    assert rows(lambda y, trace: y**2) == set("acdegh")
    assert rows(lambda y, trace: trace["delta"]) == set("bcfg")


def test_R_does_not_know_the_token_once_the_coupling_is_constant():
    """One shift for all oscillators turns them together: psi follows the token, R does not."""
    ids = tokens(4, 30)
    trace = precursor("kssm_v3", u_floor=0.5, u_ceiling=0.5).forward(ids).trace
    assert np.std(np.array(trace["block01/R"])) < 1e-6
    assert np.std(np.array(trace["block01/psi"])) > 1e-3
    free = precursor("kssm_v3").forward(ids).trace
    assert np.std(np.array(free["block01/R"])) > 1e-3


def test_a_fresh_model_shifts_nothing():
    """LayerNorm leaves a mean of zero, and the mean is all the oscillators see."""
    model = build(configure("kssm_v3", "xs", vocab_size=17)).eval()
    z = model.blocks[0].bank_norm(mx.random.normal((4, 9, 32), key=mx.random.key(0)))
    assert mx.abs(z.mean(axis=-1)).max().item() < 1e-6
    one, other = (model.forward(tokens(1, 20, seed=k)).trace["block00/theta"] for k in (0, 1))
    assert mx.abs(one.mean(axis=-1) - other.mean(axis=-1)).max().item() < 1e-5


# --- noise ----------------------------------------------------------------------------------------------


def repeated(model, training: bool, *keys) -> bool:
    """Whether two calls, or those of two keys, agree in every bit."""
    model.train(training)
    one, other = (model.forward(tokens(2, 9), key=k).logits for k in keys or (None, None))
    return mx.array_equal(one, other)


def test_noise_is_drawn_in_training_and_not_in_evaluation():
    model = precursor("kssm_v3")
    assert model.stochastic and repeated(model, False) and not repeated(model, True)
    one, same, other = (mx.random.key(k) for k in (1, 1, 2))
    assert repeated(model, True, one, same) and not repeated(model, True, one, other)


def test_legacy_noise_is_drawn_in_evaluation_too():
    assert not repeated(precursor("kssm_v3", noise="always"), False)


def test_without_noise_training_is_deterministic():
    model = precursor("kssm_v3", noise="off")
    assert not model.stochastic and repeated(model, True)


def test_noise_has_the_width_of_its_parameter():
    model = precursor("kssm_v3", n_oscillators=4000)
    for block in model.blocks:
        block.bank.spread = mx.array([-0.3])
    quiet = model.forward(tokens(1, 4)).trace["block00/theta"]
    noisy = model.train().forward(tokens(1, 4), key=mx.random.key(0)).trace["block00/theta"]
    assert mx.std(noisy - quiet).item() == pytest.approx(0.3, rel=0.02)


def test_the_start_of_the_published_trainer():
    bank = build(configure("kssm_v3", "xs", vocab_size=17)).blocks[0].bank
    W = bank.to_parameters.weight
    assert_close(W @ W.T, mx.eye(10), 1e-5)
    assert_close(bank.to_parameters.bias, mx.full((10,), 0.5), 0)
    assert bank.spread.tolist() == [pytest.approx(0.2)]
    assert_close(bank.omega, mx.linspace(-np.pi, np.pi, 32), 1e-6)
