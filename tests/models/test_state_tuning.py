"""A learned initial state: nothing at the start, the contract of every model, what it does, refusals."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from kssm_mlx import models
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.state_tuning import StateTuned
from tests.support import model_contract as contract
from tests.support.small_kssm import assert_close

SMALL = {
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {"hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8, "state_size": 4},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2},
    "rwkv7": {"hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8},
    "gru": {"d_model": 16, "n_layers": 2, "mlp_hidden": 24},
    "hybrid": {"d_model": 32, "n_layers": 2},
    "kssm": {"d_model": 16, "n_layers": 2, "n_groups": 8, "mlp_hidden": 24, "coupling": True},
    "spheres": {"d_model": 16, "n_layers": 2, "n_groups": 8, "mlp_hidden": 24, "dimension": 3},
    "linear": {"d_model": 16, "n_layers": 2, "n_groups": 8, "mlp_hidden": 24, "kappa": 0},
}
FAMILY = {"spheres": "kssm", "linear": "kssm"}
pytestmark = pytest.mark.usefixtures("uncompiled")


def plain(name: str):
    family = FAMILY.get(name, name)
    config = models.configure(family, "xs", vocab_size=contract.V, context=32, overrides=SMALL[name])
    return contract.moved(models.build(config, seed=1))


def learned(name: str, by: float = 0.5) -> StateTuned:
    """As after training: every number of the state somewhere else."""
    model = StateTuned(plain(name))
    arrays = [
        (n, a + by * mx.random.normal(a.shape, key=mx.random.key(i)))
        for i, (n, a) in enumerate(tree_flatten(model.trainable_parameters()))
    ]
    model.load_weights(arrays, strict=False)
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("name", SMALL)
def test_before_training_it_changes_nothing(name):
    host = plain(name)
    model, x = StateTuned(host), contract.tokens(2)
    assert_close(model(x), host(x), 1e-5)
    resets = mx.array([[t in (0, 7) for t in range(contract.T)], [False] * contract.T])
    assert_close(model.forward(x, resets=resets).logits, host.forward(x, resets=resets).logits, 5e-5)


@pytest.mark.parametrize("name", SMALL)
def test_it_acts_and_keeps_what_every_model_promises(name):
    model = learned(name)
    x = contract.tokens(2)
    assert mx.abs(model(x)[:, 1:3] - model.host(x)[:, 1:3]).max() > 1e-2
    contract.assert_cuts_do_not_matter(model)
    contract.assert_rows_are_alone(model)
    contract.assert_documents_are_alone(model)
    contract.assert_no_future(model)


@pytest.mark.parametrize("name", SMALL)
def test_it_alone_is_trained(name):
    contract.assert_it_alone_is_trained(StateTuned(plain(name)), "initial.")


def test_gradients_are_those_of_central_differences():
    model, x = learned("kssm"), contract.tokens(2, 5)

    def loss(v):
        model.initial[1]["populations"] = v
        return mx.square(model(x)).mean()

    v = model.initial[1]["populations"]
    gradient, direction = mx.grad(loss)(v), mx.random.normal(v.shape, key=mx.random.key(3))
    h = 1e-2
    expected = ((loss(v + h * direction) - loss(v - h * direction)) / (2 * h)).item()
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=2e-3)


def test_order_parameters_stay_below_one_and_linear_ones_need_not():
    for name, bounded in (("kssm", True), ("spheres", True), ("linear", False)):
        model = learned(name, by=20.0)
        (slot,) = model.initial[0]
        size = mx.linalg.norm(model._initial_entry(0)[slot], axis=0).max().item()
        assert (size <= 1 + 1e-6) == bounded


def test_checkpointed_blocks_give_the_same_gradient():
    contract.assert_checkpoints_change_nothing(learned("mamba"))


@pytest.mark.parametrize("means", [False, True])
def test_checkpointed_blocks_of_its_base_write_out_what_is_asked(means):
    sizes = {"n_groups": 8, "expansion": 2, "mlp_hidden": 0}
    host = models.build(models.configure("kssm", "xs", vocab_size=contract.V, context=32, overrides=sizes))
    model = StateTuned(host)
    model.checkpoint_blocks, model.checkpoint_means = True, means
    trace = model.forward(contract.tokens(2)).trace
    assert "block00/mean_R" in trace and ("block00/R" in trace) is not means


@pytest.mark.parametrize("family", ["transformer", "kssm_v3", "hybrid_v3"])
def test_a_model_without_such_a_state_is_refused(family):
    model = models.build(models.configure(family, "xs", vocab_size=contract.V, context=32))
    with pytest.raises(ConfigError, match=f"{family} carries no state that could be learned"):
        StateTuned(model)
