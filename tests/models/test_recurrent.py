"""What every base model promises: states hand over, rows are alone, resets forget, calls are pure."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import build, config_from_dict, config_to_dict, configure
from kssm_mlx.models.base import Clamp, Intervention, with_parameters
from tests.support.base_models import CONFIGS, V, base_model, leaves, tokens

CLOSE = {"atol": 3e-5, "rtol": 3e-5}
every_family = pytest.mark.parametrize("name", CONFIGS)
pytestmark = pytest.mark.usefixtures("uncompiled")


def assert_close(ours, expected):
    np.testing.assert_allclose(np.array(ours), np.array(expected), **CLOSE)


def assert_same_states(ours, expected):
    for a, b in zip(leaves(ours), leaves(expected), strict=True):
        assert_close(a, b)


@every_family
def test_token_by_token_is_the_full_sequence(name):
    model, x = base_model(name), tokens(2, 37)
    full = model.forward(x)
    cache, steps = model.make_cache(), []
    for t in range(37):
        steps.append(model(x[:, t : t + 1], cache))
    assert_close(mx.concatenate(steps, axis=1), full.logits)
    assert_same_states(cache, full.cache)


@every_family
@pytest.mark.parametrize("cut", [1, 16, 36])
def test_chunked_prefill_is_one_prefill(name, cut):
    model, x = base_model(name), tokens(2, 37)
    full, first = model.forward(x), model.forward(x[:, :cut])
    second = model.forward(x[:, cut:], first.cache)
    assert_close(mx.concatenate([first.logits, second.logits], axis=1), full.logits)
    assert_same_states(second.cache, full.cache)


@every_family
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(0, 21), min_size=1, max_size=4), warm=st.booleans())
def test_a_row_of_a_batch_gets_what_it_would_get_alone(name, lengths, warm):
    model, B, T = base_model(name), len(lengths), 21
    x = tokens(B, T)
    start = model.forward(tokens(B, 3, seed=7)).cache if warm else None
    batch = model.forward(x, start, lengths=mx.array(lengths))
    for row, length in enumerate(lengths):
        own = None if start is None else [[a[row : row + 1] for a in entry] for entry in start]
        ends = [[a[row : row + 1] for a in entry] for entry in batch.cache]
        if length:
            solo = model.forward(x[row : row + 1, :length], own)
            assert_close(batch.logits[row, :length], solo.logits[0])
            assert_same_states(ends, solo.cache)
        elif own is not None:
            assert_same_states(ends, own)


@every_family
def test_an_empty_row_continues_as_if_it_had_never_been_in_the_batch(name):
    model, x = base_model(name), tokens(2, 9)
    cache = model.forward(x, lengths=mx.array([9, 0])).cache
    assert_close(model.forward(x, cache).logits[1], model.forward(x).logits[1])


@every_family
def test_after_a_reset_nothing_leaks(name):
    model, x = base_model(name), tokens(1, 40)
    starts = [0, 5, 6, 23]
    resets = mx.array([[t in starts for t in range(40)]])
    packed = model.forward(x, model.forward(tokens(1, 4, seed=3)).cache, resets=resets)
    for start, stop in zip(starts, [*starts[1:], 40]):
        alone = model.forward(x[:, start:stop])
        assert_close(packed.logits[:, start:stop], alone.logits)
    assert_same_states(packed.cache, alone.cache)


@every_family
def test_a_reset_in_the_padding_leaves_the_state_alone(name):
    model, x = base_model(name), tokens(1, 8)
    resets = mx.array([[False] * 5 + [True] * 3])
    padded = model.forward(x, resets=resets, lengths=mx.array([5]))
    assert_same_states(padded.cache, model.forward(x[:, :5]).cache)


class MlxLmCache(list):
    """The part of mlx-lm's ArraysCache that a model sees."""

    lengths = None

    def advance(self, n):
        self.lengths = self.lengths - n


@every_family
def test_right_padded_prompts_in_chunks_as_mlx_lm_feeds_them(name):
    """Rows end in the first chunk, at its end, and in the last one."""
    model, x, lengths = base_model(name), tokens(3, 12), [3, 5, 12]
    cache = [MlxLmCache(entry) for entry in model.make_cache()]
    for entry in cache:
        entry.lengths = mx.array(lengths)
    for start in range(0, 12, 5):
        model(x[:, start : start + 5], cache)
    for row, length in enumerate(lengths):
        solo = model.forward(x[row : row + 1, :length]).cache
        assert_same_states([[a[row : row + 1] for a in entry] for entry in cache], solo)


@every_family
def test_forward_changes_nothing_that_it_is_given(name):
    model, x = base_model(name), tokens(2, 5)
    cache = model.forward(x).cache
    before = [np.array(a) for a in leaves(cache)]
    empty = model.make_cache()
    model.forward(x, empty)
    model.forward(x, cache)
    assert all(a is None for a in leaves(empty))
    for a, b in zip(leaves(cache), before, strict=True):
        np.testing.assert_array_equal(np.array(a), b)


@every_family
def test_states_and_decays_stay_fp32_under_bf16_weights(name):
    model = base_model(name, mx.bfloat16)
    out = model.forward(tokens(2, 9))
    states = {slot: a.dtype for slot, a in zip(model.slots, out.cache[0])}
    for slot in {"state", "num", "den", "max"} & states.keys():
        assert states[slot] == mx.float32
    assert out.trace["block00/state"].dtype == out.trace["block01/decay"].dtype == mx.float32
    kept = [path for path, x in tree_flatten(model.parameters()) if x.dtype == mx.float32]
    assert all(any(path.endswith(suffix) for path in kept) for suffix in model.fp32)
    assert len(kept) == len(model.fp32) * len(model.layers)


@every_family
def test_trace_names_what_happened_in_each_block(name):
    trace = base_model(name).forward(tokens(2, 9)).trace
    assert {"block00/state", "block01/state", "block00/decay"} <= trace.keys()
    decay = np.array(trace["block01/decay"])
    assert (decay > 0).all() and (decay < 1).all()


@every_family
def test_every_suffix_that_is_never_decayed_exists(name):
    model = base_model(name)
    paths = [path for path, _ in tree_flatten(model.parameters())]
    assert all(any(path.endswith(suffix) for path in paths) for suffix in model.no_decay)
    decayed = [x for path, x in tree_flatten(model.parameters()) if not path.endswith(model.no_decay)]
    assert all(x.ndim == 2 for x in decayed)


@every_family
def test_clamping_an_output_to_zero_takes_the_block_out(name):
    model, x = base_model(name), tokens(2, 9)
    out = model.forward(x, intervention=Intervention((Clamp("output", 0.0),)))
    assert_close(out.logits, model.project(model.finish(model.embed(x))))
    assert out.trace["intervention"] == ["output=0 block=all units=all tokens=0: readout"]


@every_family
def test_an_unknown_clamp_is_refused(name):
    with pytest.raises(ConfigError, match="no clamp site 'R'; this model has output"):
        base_model(name).forward(tokens(1, 2), intervention=Intervention((Clamp("R", 0.0),)))


@every_family
def test_sanitize_is_idempotent_and_total(name):
    model = base_model(name)
    weights = dict(tree_flatten(model.parameters()))
    again = model.sanitize(model.sanitize(weights))
    assert again.keys() == weights.keys()
    assert all(again[path].shape == weights[path].shape for path in weights)


@every_family
def test_a_fresh_model_knows_nothing_and_learns(name):
    """The first loss is close to ln V; a few steps on one batch lower it, through every parameter."""
    model_class, config = CONFIGS[name]
    model, x = model_class(config), tokens(4, 33)

    def loss(parameters):
        call = lambda: nn.losses.cross_entropy(model(x[:, :-1]), x[:, 1:]).mean()  # noqa: E731
        return with_parameters(model, parameters, call)

    parameters, optimizer_step = model.parameters(), mx.value_and_grad(loss)
    first = loss(parameters).item()
    assert abs(first - math.log(V)) < 0.2
    for _ in range(10):
        value, gradients = optimizer_step(parameters)
        flat = dict(tree_flatten(gradients))
        parameters = nn.utils.tree_map(lambda p, g: p - 0.03 * mx.sign(g), parameters, gradients)
        mx.eval(parameters)
    assert value.item() < first - 0.2
    silent = [
        path for path, g in flat.items() if not mx.isfinite(g).all().item() or not mx.abs(g).max().item() > 0
    ]
    assert not silent, f"no finite gradient reaches {silent}"


@pytest.mark.slow  # g++ builds up to 60 kernels, whatever T is; they are cached on disk
@every_family
def test_a_compiled_gradient_is_the_eager_one(name):
    """Training compiles; resets are an argument there, and a Python constant baked in would show."""
    model = base_model(name)

    def loss(parameters, x, resets):
        call = lambda: model.forward(x[:, :-1], resets=resets).logits  # noqa: E731
        return nn.losses.cross_entropy(with_parameters(model, parameters, call), x[:, 1:]).mean()

    compiled = mx.compile(mx.grad(loss))
    for seed in (0, 1):
        x = tokens(2, 20, seed)
        resets = mx.random.uniform(shape=(2, 19), key=mx.random.key(seed)) < 0.2
        eager = dict(tree_flatten(mx.grad(loss)(model.parameters(), x, resets)))
        for path, g in tree_flatten(compiled(model.parameters(), x, resets)):
            assert_close(g, eager[path])


@every_family
def test_checkpointed_blocks_give_the_same_gradient(name):
    model, x = base_model(name), tokens(2, 17)

    def gradient():
        loss = lambda m: nn.losses.cross_entropy(m(x[:, :-1]), x[:, 1:]).mean()  # noqa: E731
        return nn.value_and_grad(model, loss)(model)[1]

    plain = dict(tree_flatten(gradient()))
    model.checkpoint_blocks = True
    for path, g in tree_flatten(gradient()):
        assert_close(g, plain[path])


@every_family
@pytest.mark.parametrize("size", ["xs", "s", "m"])
def test_sizes_build_by_name_and_the_first_loss_is_the_uniform_one(name, size):
    config = configure(name, size, vocab_size=256, context=64)
    assert config_from_dict(config_to_dict(config)) == config
    if size == "m":
        return
    x = mx.random.randint(0, 256, (2, 33), key=mx.random.key(0))
    loss = nn.losses.cross_entropy(build(config)(x[:, :-1]), x[:, 1:]).mean().item()
    assert abs(loss - math.log(256)) < 0.2


@every_family
def test_the_same_seed_gives_the_same_bits_and_leaves_global_randomness_out(name):
    model_class, config = CONFIGS[name]
    mx.random.seed(1)
    one = dict(tree_flatten(model_class(config, seed=3).parameters()))
    mx.random.seed(2)
    two = dict(tree_flatten(model_class(config, seed=3).parameters()))
    other = dict(tree_flatten(model_class(config, seed=4).parameters()))
    assert all(mx.array_equal(one[path], two[path]).item() for path in one)
    assert any(not mx.array_equal(one[path], other[path]).item() for path in one)
