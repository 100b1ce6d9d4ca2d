"""[noise] of a recipe is an act of its own in every forward pass; what it cannot be is refused."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx import models
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.interventions.spec import Noise
from kssm_mlx.training.constraints import build_constraints
from kssm_mlx.training.recipe import parse
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step

pytestmark = pytest.mark.usefixtures("uncompiled")


def noisy(**noise):
    task = {"source": "task:interleaved", "task": {"length": 16, "vocab": 16, "train_rows": 64}}
    return parse({"data": task, "train": {"context": 16, "batch_size": 4}, "noise": noise})


@pytest.fixture
def model():
    overrides = {"d_model": 16, "n_layers": 1}
    return models.build(models.configure("transformer", "xs", vocab_size=16, context=16, overrides=overrides))


def rows():
    return mx.random.randint(0, 16, (4, 17), key=mx.random.key(0))


def test_noise_is_new_in_every_step_and_repeats_in_evaluation(model):
    recipe = noisy(site="S2", level=0.5, rms=[1.0, 2.0], of=2)
    held = build_constraints(recipe, model)
    (act,) = held.intervention.acts
    assert isinstance(act, Noise) and (act.site, act.level, act.of) == ("S2", 0.5, 2)
    np.testing.assert_array_equal(act.rms, [1.0, 2.0])
    model.eval()
    one, same = (model.forward(rows(), intervention=held.intervention).logits for _ in range(2))
    assert mx.array_equal(one, same) and mx.abs(one - model(rows())).max() > 1e-3
    step = make_step(model, recipe.train, intervention=held.intervention, compile=False)
    state = initial_state(model, recipe.train)
    other = state._replace(key=mx.random.key(9))
    losses = [step(s, rows())[1]["loss"].item() for s in (state, state, other)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "noise, message",
    [
        ({"level": 0.0}, "noise.level: input should be greater than 0, got 0"),
        ({"level": 0.1, "site": "S1"}, "noise.site: input should be 'S2', 'S3' or 'S4', got 'S1'"),
        ({"level": 0.1, "rms": [1.0], "of": 2}, "noise: 1 rms for noise.of = 2 units; give one each"),
        ({"level": 0.1, "lvel": 1}, "unknown key 'noise.lvel'; did you mean 'level'"),
    ],
)
def test_noise_that_cannot_be_is_refused(noise, message):
    with pytest.raises(ConfigError, match=message):
        noisy(**noise)
