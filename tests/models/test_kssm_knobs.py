"""The knobs of K-SSM: at rest they are not there; turned, R follows, and controllers can use them."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import CheckpointError
from kssm_mlx.models import build, configure
from kssm_mlx.runner.initial_model import load_trained_parameters
from kssm_mlx.training.controllers import apply_control
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state, to_arrays, with_knobs
from kssm_mlx.training.steering_sections import Control
from kssm_mlx.training.step import make_step

pytestmark = pytest.mark.usefixtures("uncompiled")

TOKENS = mx.random.randint(0, 11, (2, 17), key=mx.random.key(0))


def small(**options):
    own = {"d_model": 8, "n_groups": 6, "mlp_hidden": 8}
    return build(configure("kssm", "xs", vocab_size=11, context=16, overrides={**own, **options}))


def turned(model, **values) -> float:
    """Mean R with all knobs of a name at a value."""
    for name, value in values.items():
        for block in model.blocks:
            setattr(block.mixer.populations, name, mx.array(value))
    trace = model.forward(TOKENS).trace
    return float(np.mean([trace[f"block{i:02d}/R"] for i in range(2)]))


@pytest.mark.parametrize("options", [{}, {"leaf": "hold"}, {"triadic": (1.0, 8.0)}])
def test_at_rest_knobs_change_nothing_and_turned_they_move_R_the_right_way(options):
    model = small(controlled=True, **options)
    assert mx.array_equal(model(TOKENS), small(**options)(TOKENS)).item()
    rest = turned(model)
    assert turned(model, k_scale=2.0) > rest + 0.01
    assert turned(model, k_scale=0.5) < rest - 0.01
    assert turned(model, k_scale=1.0, sigma=0.5) < rest - 0.01


def test_knobs_are_named_frozen_and_only_there_when_asked_for():
    model = small(controlled=True)
    assert model.knobs[:2] == ("blocks.0.mixer.populations.k_scale", "blocks.0.mixer.populations.sigma")
    assert len(model.knobs) == 4 and small().knobs == ()
    state = initial_state(model, Train())
    assert sorted(state.knobs) == sorted(model.knobs)


def test_twenty_actions_of_a_controller_move_R_and_the_knobs_keep_it():
    model, rule = small(controlled=True), Control(rule="drift")
    train = Train(batch_size=2, context=16, learning_rate=1e-30, weight_decay=0)
    step, state = make_step(model, train, monitor=True, compile=False), initial_state(model, train)

    def R_after(observed: float, state) -> float:
        knobs = {name: array.item() for name, array in state.knobs.items()}
        for _ in range(20):
            knobs = apply_control(rule, {"R": observed}, knobs).knobs
        state = state._replace(knobs={name: mx.array(value) for name, value in knobs.items()})
        return step(state, TOKENS)[1]["R"].item(), with_knobs(state.params, state.knobs)

    rest = step(state, TOKENS)[1]["R"].item()
    (braked, low), (raised, high) = R_after(0.9, state), R_after(0.1, state)
    assert braked < rest - 0.01 and raised > rest + 0.01
    gains = [tree["blocks"][0]["mixer"]["populations"]["k_scale"].item() for tree in (low, high)]
    assert gains == pytest.approx([0.95**20, 5.0], rel=1e-5)


def test_whoever_loads_the_weights_of_a_run_gets_its_knobs():
    model, name = small(controlled=True), "blocks.1.mixer.populations.k_scale"
    state = initial_state(model, Train())
    weights, _ = to_arrays(state._replace(knobs={**state.knobs, name: mx.array(1.5)}))
    fresh = small(controlled=True)
    load_trained_parameters(fresh, weights)
    assert fresh.blocks[1].mixer.populations.k_scale.item() == 1.5
    with pytest.raises(CheckpointError, match="k_scale"):
        load_trained_parameters(fresh, {key: array for key, array in weights.items() if key != name})
