"""The dense recurrences keep the promises of every family, and are MLX's own GRU and RNN inside."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from kssm_mlx.models.gru import GRU, GRUConfig
from tests.support.model_contract import assert_cuts_do_not_matter, assert_rows_are_alone, moved, tokens
from tests.support.small_kssm import assert_close

pytestmark = pytest.mark.usefixtures("uncompiled")
VARIANTS = {
    "gru": {},
    "tanh": {"cell": "tanh"},
    "wide": {"state_size": 24, "mlp_hidden": 0, "tie_embeddings": True},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def small(name: str) -> GRU:
    config = GRUConfig(vocab_size=17, d_model=16, n_layers=2, **{"mlp_hidden": 12, **VARIANTS[name]})
    return moved(GRU(config, seed=1))


@every_variant
def test_cuts_do_not_matter(name):
    assert_cuts_do_not_matter(small(name))


@every_variant
def test_rows_are_alone(name):
    assert_rows_are_alone(small(name))


def test_after_a_reset_nothing_of_the_text_before_is_left():
    model, x = small("gru"), tokens(1)
    resets = (mx.arange(x.shape[1]) == 9)[None]
    with_reset = model.forward(x, resets=resets).logits[:, 9:]
    assert_close(with_reset, model.forward(x[:, 9:]).logits, 5e-5)


def test_the_recurrence_is_the_gru_of_mlx():
    mixer = small("gru").blocks[0].mixer
    theirs = nn.GRU(16, 16)
    theirs.Wx, theirs.b = mixer.inputs.weight, mixer.inputs.bias
    theirs.Wh, theirs.bhn = mixer.recurrent.weight, mx.zeros((16,))
    x, start = (
        mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate([(2, 7, 16), (2, 16)])
    )
    states = theirs(x, start)
    y, last, _ = mixer(x, start, None, None)
    assert_close(last, states[:, -1], 1e-5)
    assert_close(y, mixer.output(states), 1e-5)


def test_without_gates_it_is_the_rnn_of_mlx():
    mixer = small("tanh").blocks[0].mixer
    theirs = nn.RNN(16, 16)
    theirs.Wxh, theirs.bias, theirs.Whh = mixer.inputs.weight, mixer.inputs.bias, mixer.recurrent.weight
    x = mx.random.normal((2, 7, 16), key=mx.random.key(0))
    assert_close(mixer(x, None, None, None)[0], mixer.output(theirs(x)), 1e-5)


def test_the_past_reaches_the_last_token_and_the_future_reaches_none():
    model, x = small("gru"), tokens(1)
    changed = mx.concatenate([(x[:, :1] + 1) % 17, x[:, 1:]], axis=1)
    moved_by = mx.abs(model(changed) - model(x)).max(axis=-1)[0]
    assert moved_by[-1].item() > 1e-6
    later = mx.concatenate([x[:, :-1], (x[:, -1:] + 1) % 17], axis=1)
    assert mx.array_equal(model(later)[:, :-1], model(x)[:, :-1])
