"""What K-SSM v1, v2 and v3 have in common: no memory, as published, and the promises of every model here."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import FAMILIES, build, configure
from kssm_mlx.models.base import Clamp, Intervention, with_parameters
from tests.support.small_kssm import assert_close, tokens
from tests.support.small_precursors import LENGTH, PRECURSORS, V, precursor, size_of

pytestmark = pytest.mark.usefixtures("uncompiled")
POSITIONED = [family for family in PRECURSORS if family != "kssm_v1"]


@pytest.fixture(params=PRECURSORS)
def model(request):
    return precursor(request.param)


@pytest.fixture(params=POSITIONED)
def positioned(request):
    return precursor(request.param)


@pytest.mark.parametrize(
    "family, size, vocab_size, parameters",
    [
        ("kssm_v1", "s", 65, 48_833),
        ("kssm_v2", "s", 100_277, 28_305_161),
        ("kssm_v2", "m", 100_277, 47_136_397),
        ("kssm_v2", "l", 100_277, 71_839_249),
        ("kssm_v3", "m", 100_277, 46_246_722),
    ],
)
def test_parameters_are_those_of_the_published_models(family, size, vocab_size, parameters):
    _, _, model_class = FAMILIES[family].load()
    assert size_of(model_class(configure(family, size, vocab_size=vocab_size))) == parameters


# --- no memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [1, 5, 20])
def test_nothing_mixes_over_time(model, lag):
    """The token before, or 20 before: not one bit of the logits changes. The token itself changes them."""
    ids = tokens(4, 30)
    changed = mx.array(np.where(np.arange(30) == 29 - lag, (np.array(ids) + 1) % V, ids))
    one, other = model.forward(ids).logits, model.forward(changed).logits
    assert model.memoryless and mx.array_equal(one[:, -1], other[:, -1])
    assert mx.abs(one[:, 29 - lag] - other[:, 29 - lag]).max().item() > 1e-3


def test_v1_carries_nothing_at_all():
    out = precursor("kssm_v1").forward(tokens(2, 9))
    assert out.cache == [[]]


def test_the_others_carry_the_position_and_nothing_else(positioned):
    cache = positioned.forward(tokens(2, 9)).cache
    assert [[x.tolist() for x in entry] for entry in cache] == [[[[8], [8]]]] * 2
    moved = [[entry[0] + 3] for entry in cache]
    gap = positioned.forward(tokens(2, 1), cache).logits - positioned.forward(tokens(2, 1), moved).logits
    assert mx.abs(gap).max().item() > 1e-3


# --- sequences ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 17, 29])
def test_cut_anywhere(model, cut):
    ids = tokens(2, 30)
    whole, first = model.forward(ids), model.forward(ids[:, :cut])
    rest = model.forward(ids[:, cut:], first.cache)
    assert_close(mx.concatenate([first.logits, rest.logits], axis=1), whole.logits)
    assert_close(rest.cache, whole.cache)


def test_token_by_token(model):
    ids, cache = tokens(2, 12), model.make_cache()
    steps = [model(ids[:, t : t + 1], cache) for t in range(12)]
    assert_close(mx.concatenate(steps, axis=1), model(ids))


def test_padded_rows_are_what_they_are_alone(model):
    ids, lengths = tokens(4, 20), [20, 0, 7, 2]
    before = model.forward(tokens(4, 3, seed=2)).cache
    together = model.forward(ids, before, lengths=mx.array(lengths))
    for b, n in enumerate(lengths):
        own = [[x[b : b + 1] for x in entry] for entry in before]
        alone = model.forward(ids[b : b + 1, :n], own) if n else None
        if alone:
            assert_close(together.logits[b : b + 1, :n], alone.logits)
        assert_close(
            [[x[b : b + 1] for x in entry] for entry in together.cache], alone.cache if alone else own
        )


def test_positions_begin_again_with_a_document(positioned):
    ids = tokens(2, 30)
    resets = (mx.arange(30)[None] == 4) | (mx.arange(30)[None] == mx.array([11, 20])[:, None])
    out = positioned.forward(ids, positioned.forward(tokens(2, 8, seed=1)).cache, resets=resets)
    for b, start in enumerate([11, 20]):
        fresh = positioned.forward(ids[b : b + 1, start:])
        assert_close(out.logits[b : b + 1, start:], fresh.logits)
        assert_close([[x[b : b + 1] for x in entry] for entry in out.cache], fresh.cache)


def test_a_reset_in_the_padding_leaves_the_position_alone(positioned):
    ids, resets = tokens(1, 8), mx.arange(8)[None] == 6
    padded = positioned.forward(ids, resets=resets, lengths=mx.array([5]))
    assert_close(padded.cache, positioned.forward(ids[:, :5]).cache)


def test_beyond_the_table_the_last_position_stays(positioned):
    ids = mx.broadcast_to(tokens(1, 1), (1, LENGTH + 5))
    logits = positioned.forward(ids).logits
    assert_close(logits[:, LENGTH - 1], logits[:, -1], 1e-5)
    assert mx.abs(logits[:, LENGTH - 2] - logits[:, -1]).max().item() > 1e-3


def test_checkpointed_blocks_have_the_same_gradients(model):
    ids = tokens(2, 10)

    def gradients(keep: bool):
        model.checkpoint_blocks = keep
        return mx.grad(lambda p: with_parameters(model, p, lambda: loss(model, ids)))(
            model.trainable_parameters()
        )

    assert_close(gradients(True), gradients(False), 1e-5)


# --- construction ---------------------------------------------------------------------------------------


def loss(model, ids) -> mx.array:
    return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="mean")


@pytest.mark.parametrize("family", PRECURSORS)
def test_the_seed_is_the_model(family):
    config = configure(family, "xs", vocab_size=V)
    mx.random.seed(1)
    one, other = build(config, 3), build(config, 4)
    mx.random.normal((3,))
    assert_close(build(config, 3).parameters(), one.parameters(), 0)
    assert not mx.array_equal(one.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("family", PRECURSORS)
@pytest.mark.parametrize("size", ["xs", "s"])
def test_a_fresh_model_knows_nothing(family, size):
    fresh = build(configure(family, size, vocab_size=65)).eval()
    ids = mx.array(np.random.default_rng(0).integers(0, 65, (2, 65)))
    assert loss(fresh, ids).item() == pytest.approx(math.log(65), abs=0.2)


@pytest.mark.parametrize("family", POSITIONED)
def test_the_legacy_embedding_copies_its_input(family):
    """N(0, 1) beside a tied head: the most likely next token is the one just read, at hundreds of nats."""
    config = configure(family, "s", vocab_size=65, overrides={"embedding_init": "legacy"})
    fresh, ids = build(config).eval(), mx.array(np.random.default_rng(0).integers(0, 65, (2, 65)))
    assert mx.array_equal(mx.argmax(fresh(ids), axis=-1), ids)
    assert loss(fresh, ids).item() > 10 * math.log(65)


@pytest.mark.parametrize(
    "family, unread",
    [
        ("kssm_v1", {"blocks.0.coupling"}),
        ("kssm_v2", {"aggregate.weight", "aggregate.bias"}),
        ("kssm_v3", set()),
    ],
)
def test_what_the_loss_never_reaches_is_what_was_published_unread(family, unread):
    model, ids = precursor(family), tokens(4, 20)
    gradients = mx.grad(lambda p: with_parameters(model, p, lambda: loss(model, ids)))(
        model.trainable_parameters()
    )
    sizes = {name: mx.abs(g).max().item() for name, g in tree_flatten(gradients)}
    noise = {name for name in sizes if name.endswith("spread")}  # in training only
    assert {name for name, size in sizes.items() if size == 0} - noise == unread
    assert all(math.isfinite(size) for size in sizes.values())


def test_names_without_decay_exist(model):
    names = [name for name, _ in tree_flatten(model.parameters())]
    assert all(any(name.endswith(suffix) for name in names) for suffix in model.no_decay)


# --- observation and intervention -----------------------------------------------------------------------


def test_the_trace_has_its_names_and_shapes(model):
    trace = model.forward(tokens(3, 5)).trace
    observed = {"R": 1, "psi": 1, "theta": model.args.n_oscillators}
    more = {"kssm_v1": (), "kssm_v2": ("K",), "kssm_v3": ("K", "u", "u_raw", "delta")}[model.model_type]
    width = {**observed, **dict.fromkeys(more, 1)}
    names = {f"block{i:02d}/{name}" for i in range(len(model.layers)) for name in width}
    assert trace.keys() == names
    for name, value in trace.items():
        assert value.shape == (3, 5, width[name.split("/")[1]]) and value.dtype == mx.float32
    mean = np.exp(1j * np.array(trace["block00/theta"], np.float64)).mean(-1, keepdims=True)
    np.testing.assert_allclose(trace["block00/R"], np.abs(mean), atol=1e-6)


@pytest.mark.parametrize("family", ["kssm_v1", "kssm_v3"])
def test_R_is_held_exactly_where_it_was_asked(family):
    model, ids = precursor(family), tokens(2, 12)
    free = model.forward(ids)
    held = model.forward(ids, intervention=Intervention((Clamp("R", 0.4, block=0, start=3, stop=7),)))
    inside = np.zeros((2, 12, 1), bool)
    inside[:, 3:7] = True
    R = np.array(held.trace["block00/R"])
    np.testing.assert_allclose(R[inside], 0.4, rtol=1e-5)
    np.testing.assert_array_equal(R[~inside], np.array(free.trace["block00/R"])[~inside])
    np.testing.assert_allclose(held.trace["block00/psi"], free.trace["block00/psi"], atol=1e-5)
    changed = mx.abs(held.logits - free.logits).max(axis=(0, 2))
    assert changed[3:7].min().item() > 1e-4 and changed[7:].max().item() == 0


def test_a_block_taken_out_leaves_the_stream_as_it_was(positioned):
    ids = tokens(2, 6)
    out = positioned.forward(ids, intervention=Intervention((Clamp("output", 0.0),)))
    x = positioned.embedding(ids) + positioned.positions[:6]
    assert_close(out.logits, positioned.project(positioned.norm(x)))


@pytest.mark.parametrize("family, site", [("kssm_v1", "output"), ("kssm_v2", "R"), ("kssm_v3", "psi")])
def test_what_a_model_cannot_hold_is_refused(family, site):
    with pytest.raises(ConfigError, match=f"no clamp site '{site}'"):
        precursor(family).forward(tokens(1, 3), intervention=Intervention((Clamp(site, 0.1),)))


def test_bf16_keeps_the_phases_in_fp32(model):
    keep, full = model.cast_predicate, model(tokens(2, 9))
    model.update(
        tree_map_with_path(lambda name, p: p.astype(mx.bfloat16) if keep(name) else p, model.parameters())
    )
    out = model.forward(tokens(2, 9))
    assert out.logits.dtype == mx.bfloat16 and out.trace["block00/theta"].dtype == mx.float32
    scale = mx.abs(full).max().item()
    np.testing.assert_allclose(np.array(out.logits.astype(mx.float32)) / scale, full / scale, atol=0.1)
