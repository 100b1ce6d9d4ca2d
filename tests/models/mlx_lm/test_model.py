"""A model of mlx-lm behind our interface: its own logits, and the promises of a recurrence about rows."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import build, configure
from kssm_mlx.models.base import Clamp, Intervention, component_of, flatten
from kssm_mlx.models.mlx_lm.walk import Walk
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from tests.support.mlx_lm_models import OPTIONS, V, tiny, tokens
from tests.support.model_contract import (
    assert_checkpoints_change_nothing,
    assert_cuts_do_not_matter,
    assert_no_future,
)
from tests.support.small_kssm import assert_close

pytestmark = pytest.mark.usefixtures("uncompiled")
T = 16


@pytest.fixture(scope="module", params=OPTIONS)
def model(request):
    return tiny(request.param)


def close(a, b):
    assert_close(a, b, 5e-5)


def test_the_logits_are_those_of_mlx_lm(model):
    from mlx_lm.models.cache import make_prompt_cache

    theirs, x = model._walk.model, tokens(2, T)
    assert mx.array_equal(model(x), theirs(x))
    cache = make_prompt_cache(theirs)
    pieces = [theirs(piece, cache=cache) for piece in mx.split(x, [5, 6, 13], axis=1)]
    close(model(x), mx.concatenate(pieces, axis=1))


def test_the_cache_is_the_text_before_wherever_it_is_cut(model):
    assert_cuts_do_not_matter(model)


def test_no_token_sees_its_future(model):
    assert_no_future(model)


def test_a_row_of_a_batch_gets_what_it_would_get_alone(model):
    x, more, lengths = tokens(3, T), tokens(3, 5, seed=1), (T, 7, 0)
    batch = model.forward(x, lengths=mx.array(lengths))
    after = model.forward(more, batch.cache)
    for row, length in enumerate(lengths):
        alone = model.forward(mx.concatenate([x[row : row + 1, :length], more[row : row + 1]], axis=1))
        close(batch.logits[row, :length], alone.logits[0, :length])
        close(after.logits[row], alone.logits[0, length:])


def test_a_document_never_sees_the_one_before(model):
    x, starts, more = tokens(1, T), [3, 4, 10], tokens(1, 6, seed=4)
    before = model.forward(tokens(1, 4, seed=3)).cache
    packed = model.forward(x, before, resets=mx.array(np.isin(np.arange(T), starts))[None])
    for start, stop in zip(starts, [*starts[1:], T]):
        close(packed.logits[:, start:stop], model.forward(x[:, start:stop]).logits)
    alone = model.forward(mx.concatenate([x[:, 10:], more], axis=1)).logits[:, T - 10 :]
    close(model.forward(more, packed.cache).logits, alone)


def test_blocks_computed_again_give_the_same_gradient(model):
    assert_checkpoints_change_nothing(model)
    assert model.checkpoint_blocks
    cut = model.forward(tokens(2, 5), model.forward(tokens(2, 4, seed=1)).cache)
    model.checkpoint_blocks = False
    close(cut.logits, model.forward(tokens(2, 5), model.forward(tokens(2, 4, seed=1)).cache).logits)


def test_a_block_held_at_zero_is_not_there(model):
    """The stream of a model whose blocks all add nothing is the embedding."""
    none = Intervention((Clamp("output", 0.0),))
    held = model.hidden(tokens(1, T), intervention=none)[0]
    assert not mx.allclose(held, model.hidden(tokens(1, T))[0], atol=1e-2)
    other = mx.concatenate([tokens(1, T)[:, :1] + 1, tokens(1, T)[:, 1:]], axis=1)
    close(held[:, 1:], model.hidden(other, intervention=none)[0][:, 1:])


def test_a_step_of_training_moves_every_parameter():
    model = tiny("openelm")
    train = Train(learning_rate=0.02, warmup=0, schedule="constant")
    state, losses = initial_state(model, train), []
    step, before = make_step(model, train, compile=False), flatten(model.parameters())
    for _ in range(3):
        state, metrics = step(state, tokens(3, T))
        losses.append(metrics["loss"].item())
    assert losses[-1] < losses[0]
    assert not any(mx.array_equal(a, before[name]) for name, a in flatten(state.params).items())


def test_names_are_those_of_mlx_lm_and_say_what_a_parameter_is_part_of(model):
    assert flatten(model.parameters()).keys() == flatten(model._walk.model.parameters()).keys()
    tags = {component_of(model, name) for name in flatten(model.parameters())}
    tied = tags - {"head"}
    assert tied == {"embedding", "norm", "mlp", "attention"}
    assert model.no_decay and all(flatten(model.parameters())[name].ndim == 1 for name in model.no_decay)


def test_a_seed_gives_the_same_bits_and_leaves_the_generator_alone():
    config = configure("mlx_lm", "xs", vocab_size=V)
    mx.random.seed(5)
    expected = mx.random.normal((3,))
    mx.random.seed(5)
    one, two, other = (flatten(build(config, seed).parameters()) for seed in (1, 1, 2))
    assert mx.array_equal(mx.random.normal((3,)), expected)
    assert all(mx.array_equal(one[n], two[n]) for n in one)
    assert not mx.array_equal(
        one["lm_head.weight" if "lm_head.weight" in one else next(iter(one))],
        other["lm_head.weight" if "lm_head.weight" in other else next(iter(other))],
    )


GPT2 = {
    "n_ctx": 64,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
    "num_key_value_heads": 4,
}


def test_learned_positions_take_one_document_per_row_and_say_so():
    model = build(
        configure("mlx_lm", "xs", vocab_size=V, overrides={"options": {"model_type": "gpt2", **GPT2}})
    )
    assert model(tokens(1, 4)).shape == (1, 4, V)
    with pytest.raises(
        ConfigError, match=r"mlx-lm's gpt2 cannot read several documents in one row: .* one doc"
    ):
        model.forward(tokens(1, 4), resets=mx.array([[False, True, False, False]]))


def test_masks_of_another_shape_take_one_prompt_at_a_time_and_say_so():
    model = tiny("gemma2", head_dim=8, query_pre_attn_scalar=8)
    model.settle()
    assert mx.array_equal(model(tokens(2, 6)), model._walk.model(tokens(2, 6)))
    with pytest.raises(
        ConfigError, match="mlx-lm's gemma2 cannot read prompts of unequal lengths in one batch"
    ):
        model.forward(tokens(2, 4), lengths=mx.array([1, 4]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_type": "openlem"}, "mlx-lm has no model of type 'openlem'"),
        ({"model_type": "../x"}, r"mlx-lm has no model of type '\.\./x'"),
        ({"model_type": "cache"}, "mlx-lm has no model of type 'cache'"),
        ({}, "mlx-lm has no model of type 'None'"),
        ({"model_type": "llama"}, "llama cannot be made of these options: TypeError: .* missing 5 required"),
        ({"model_type": "llama", "num_hidden_layers": 10**6}, "num_hidden_layers must be at most 4,096"),
        (
            {
                "model_type": "mamba2",
                **OPTIONS["llama"],
                "num_heads": 4,
                "head_dim": 16,
                "state_size": 8,
                "conv_kernel": 4,
                "n_groups": 1,
                "use_bias": False,
                "use_conv_bias": True,
                "time_step_limit": [0, 1],
                "time_step_rank": 4,
                "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": True,
            },
            "mlx-lm's mamba2 carries ArraysCache from token to token; .* keys and values alone are taken",
        ),
    ],
)
def test_what_mlx_lm_has_not_or_we_cannot_hold_is_refused_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        build(configure("mlx_lm", "xs", vocab_size=V, overrides={"options": options}))
    assert "\n" not in str(refusal.value)


class Flat(nn.Module):
    """Blocks beside the head, in no module of their own."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 4)]


class Skipping(nn.Module):
    """A stack that leaves its second block out."""

    def __init__(self):
        super().__init__()
        self.model = Stack()

    @property
    def layers(self):
        return self.model.layers

    def __call__(self, tokens, cache=None):
        return self.model(tokens, cache)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]

    def __call__(self, tokens, cache=None):
        for c in cache or ():
            c.update_and_fetch(mx.zeros((1, 1, tokens.shape[1], 1)), mx.zeros((1, 1, tokens.shape[1], 1)))
        return self.layers[0](mx.zeros((*tokens.shape, 4)))


def test_a_model_without_a_stack_to_graft_on_is_refused():
    with pytest.raises(
        ConfigError, match=r"^mlx-lm's flat has no stack of blocks inside it, which a head reads; "
    ):
        Walk(Flat(), "flat")
    with pytest.raises(
        ConfigError, match="skipping has blocks that are not called one after the other on one"
    ):
        Walk(Skipping(), "skipping")
