"""Arms are read in evaluation mode, under noise that only the seed decides, and leave the model as it was."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks.core.conditions import hidden_of, mean_kl, run_arm
from kssm_mlx.checks.core.registry import NotMeasurable
from kssm_mlx.models.base import Output

TOKENS = mx.zeros((1, 3), mx.int32)


class Moody:
    """Says 1 in training and 0 otherwise; draws noise where it is told to."""

    def __init__(self, stochastic=False):
        self.training, self.stochastic = True, stochastic

    def train(self, mode=True):
        self.training = mode

    def hidden(self, tokens, cache=None, intervention=None, *, key=None):
        says = mx.full((*tokens.shape, 4), float(self.training))
        return (says if key is None else says + mx.random.normal(says.shape, key=key)), None, {}

    def forward(self, tokens, cache=None, intervention=None, *, key=None):
        return Output(
            self.hidden(tokens, key=key)[0], None, {"block00/state": mx.ones(2), "said": "in words"}
        )


@pytest.mark.parametrize(
    "read", [lambda model: run_arm(model, TOKENS).logits, lambda m: hidden_of(m, TOKENS)]
)
def test_an_arm_is_read_in_evaluation_mode_and_the_model_left_as_it_was(read):
    """What acts in training alone, or not in evaluation, must not decide what a check sees."""
    model = Moody()
    np.testing.assert_array_equal(read(model), 0)
    assert model.training


def test_noise_is_of_the_seed_and_only_where_a_model_draws():
    one, again, other = (run_arm(Moody(stochastic=True), TOKENS, seed).logits for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).min() > 0
    assert np.abs(run_arm(Moody(), TOKENS, 1).logits).max() == 0


def test_a_trace_has_arrays_alone():
    trace = run_arm(Moody(), TOKENS).trace
    assert [*trace] == ["block00/state"] and isinstance(trace["block00/state"], np.ndarray)


def test_a_model_that_does_not_say_what_the_head_reads_is_not_measurable():
    with pytest.raises(NotMeasurable, match=r"has no hidden\(\)"):
        hidden_of(object(), TOKENS)


def test_divergence_by_hand():
    """From (1/2, 1/2) to (3/4, 1/4), in nats."""
    reference, other = np.log([[[0.5, 0.5]]]), np.log([[[0.75, 0.25]]])
    assert mean_kl(reference, other) == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))
    assert mean_kl(reference, reference) == 0
