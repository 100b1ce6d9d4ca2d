"""K-SSM v3 in training: its R climbs with weight decay on its frequencies, and does not without."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.models import build, configure
from kssm_mlx.oscillators.decay_null import coherence_under_decay, shrinkage
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.schedules import schedule
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step

pytestmark = pytest.mark.usefixtures("uncompiled")
STEPS = 120


def trained(decay: str) -> tuple[np.ndarray, Train]:
    """R before every step: 120 steps whose lr x decay adds up to what 15,000 published steps added up to."""
    train = Train(
        steps=STEPS, batch_size=4, context=16, warmup=8, learning_rate=4e-4, final_fraction=0,
        weight_decay=12.5, decay=decay,
    )  # fmt: skip
    overrides = {"n_layers": 1, "n_oscillators": 192, "harmonics": 4, "u_ceiling": 0.1}
    model = build(configure("kssm_v3", "xs", vocab_size=17, context=16, overrides=overrides))
    step, state, R = make_step(model, train, compile=False), initial_state(model, train), []
    for i in range(STEPS):
        tokens = mx.random.randint(0, 17, (4, 17), key=mx.random.key(i)).astype(mx.int32)
        state, metrics = step(state, tokens, None)
        R.append(metrics["R_block00"])
        mx.eval(state, R)
    return np.array(mx.stack(R)), train


def test_R_climbs_as_decay_alone_predicts():
    R, train = trained("all")
    lr = np.array(schedule(train)(mx.arange(STEPS)))
    null = coherence_under_decay(shrinkage(lr, train.weight_decay)[:-1], 0.1)
    assert R[0] < 0.05 and R[-1] > 0.45
    np.testing.assert_allclose(R[20:], null[20:], atol=0.02)


def test_without_decay_on_the_frequencies_it_stays():
    R, _ = trained("matrices")
    assert R.max() < 0.05
