"""The published R of K-SSM v3, from weight decay alone: no data, no gradient."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.oscillators.decay_null import coherence_under_decay, shrinkage
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.schedules import schedule

GUTENBERG = {
    1500: 0.0534, 3000: 0.1471, 4700: 0.2345, 6000: 0.2823, 6500: 0.2950, 6540: 0.2957, 10_000: 0.3233
}  # fmt: skip
WIKITEXT = {
    1000: 0.0240, 2000: 0.0860, 3000: 0.1493, 5000: 0.2698, 8000: 0.4064, 10_000: 0.4579, 12_000: 0.4714,
    15_000: 0.4908,
}  # fmt: skip
CONTROL = {
    1000: 0.0248, 2000: 0.0706, 3000: 0.1270, 5000: 0.2315, 8000: 0.3395, 10_000: 0.3803, 12_000: 0.3952,
    15_000: 0.4043,
}  # fmt: skip
RESUMED = {18_000: 0.6528, 22_000: 0.8099, 100_000: 0.9928}
FLOOR = 0.1  # where the clamp of the bistable variant held u


def rates(steps: int) -> np.ndarray:
    """The published schedule: 1000 steps up to 4e-4, then a cosine to 0."""
    train = Train(steps=steps, warmup=1000, learning_rate=4e-4, final_fraction=0)
    return np.array(schedule(train)(mx.arange(steps)))


def assert_predicts(lr: np.ndarray, u: float, published: dict[int, float]) -> None:
    R = coherence_under_decay(shrinkage(lr, 0.1)[list(published)], u)
    np.testing.assert_allclose(R, list(published.values()), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "steps, u, published",
    [(10_000, FLOOR, GUTENBERG), (15_000, FLOOR, WIKITEXT), (15_000, -0.975, CONTROL)],
    ids=["10k Gutenberg", "15k WikiText", "monostable"],
)
def test_decay_alone_gives_every_published_R(steps, u, published):
    """Of the control, whose u moved, only the last mean is published, -0.975: K is held there throughout."""
    assert_predicts(rates(steps), u, published)


def test_the_resumed_run_goes_on_alike():
    """15k steps of a schedule of 15k, then the schedule of 100k from there."""
    assert_predicts(np.concatenate([rates(15_000), rates(100_000)[15_000:]]), FLOOR, RESUMED)


def test_the_start_is_incoherent_and_a_bank_without_width_is_not():
    np.testing.assert_allclose(coherence_under_decay(np.array([1.0, 0.0]), FLOOR), [0.005, 1.0], atol=5e-3)


def test_bistable_beats_monostable_by_the_coupling_alone():
    """The published 17.6 %: the same frequencies under K = 1.05 and K = 0.55."""
    strong, weak = (coherence_under_decay(shrinkage(rates(15_000), 0.1)[-1], u) for u in (FLOOR, -0.975))
    assert strong / weak - 1 == pytest.approx(0.4908 / 0.4043 - 1, abs=0.02)


def test_shrinkage_is_the_product():
    np.testing.assert_allclose(shrinkage(np.array([0.1, 0.2]), 0.5), [1, 0.95, 0.95 * 0.9])
