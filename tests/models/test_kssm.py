"""K-SSM: what it computes from what it was told, how its state hands over, what an intervention changes."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import build, configure
from kssm_mlx.models.base import Clamp, Intervention, with_parameters
from kssm_mlx.models.kssm import KSSM, KSSMConfig
from kssm_mlx.oscillators.ball import sphere_order
from kssm_mlx.oscillators.planar import Planar
from tests.support.small_kssm import VARIANTS, V, assert_close, awake, config, tokens

BOTH = {"dimensions": {2: 3, 3: 5}, "wells": 4}
pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(params=VARIANTS)
def model(request) -> KSSM:
    return awake(request.param)


def logits(model, ids, **masks):
    return model.forward(ids, **masks).logits


# --- sequences ------------------------------------------------------------------------------------------


def test_no_token_sees_its_future(model):
    ids = tokens(2, 40)
    changed = mx.concatenate([ids[:, :25], (ids[:, 25:] + 1) % V], axis=1)
    one, other = logits(model, ids), logits(model, changed)
    np.testing.assert_allclose(one[:, :25], other[:, :25], atol=1e-6)
    assert mx.abs(one[:, 25:] - other[:, 25:]).max().item() > 1e-3


def test_the_first_token_reaches_the_last(model):
    """40 tokens are beyond the convolutions of both blocks."""
    ids = tokens(1, 40)
    other = mx.concatenate([(ids[:, :1] + 1) % V, ids[:, 1:]], axis=1)
    assert mx.abs(logits(model, ids)[:, -1] - logits(model, other)[:, -1]).max().item() > 1e-6


@pytest.mark.parametrize("cut", [1, 2, 3, 17, 39])
def test_cut_anywhere(model, cut):
    ids = tokens(2, 40)
    whole = model.forward(ids)
    first = model.forward(ids[:, :cut])
    rest = model.forward(ids[:, cut:], first.cache)
    assert_close(mx.concatenate([first.logits, rest.logits], axis=1), whole.logits)
    assert_close(rest.cache, whole.cache)


def test_token_by_token(model):
    ids, cache = tokens(2, 12), model.make_cache()
    steps = [model(ids[:, t : t + 1], cache) for t in range(12)]
    assert_close(mx.concatenate(steps, axis=1), model(ids))


def test_rows_do_not_see_each_other(model):
    ids = tokens(3, 20)
    together = model.forward(ids)
    for b in range(3):
        alone = model.forward(ids[b : b + 1])
        assert_close(together.logits[b : b + 1], alone.logits)
        assert_close([[x[b : b + 1] for x in entry] for entry in together.cache], alone.cache)


def test_padded_rows_are_what_they_are_alone(model):
    ids, lengths = tokens(4, 20), [20, 1, 7, 2]
    together = model.forward(ids, lengths=mx.array(lengths))
    for b, n in enumerate(lengths):
        alone = model.forward(ids[b : b + 1, :n])
        assert_close(together.logits[b : b + 1, :n], alone.logits)
        assert_close([[x[b : b + 1] for x in entry] for entry in together.cache], alone.cache)


def test_a_row_of_no_tokens_keeps_its_state(model):
    before = model.forward(tokens(2, 9)).cache
    after = model.forward(tokens(2, 5, seed=1), before, lengths=mx.array([0, 5])).cache
    assert_close([[x[:1] for x in entry] for entry in after], [[x[:1] for x in entry] for entry in before])


def test_after_a_reset_nothing_leaks(model):
    ids = tokens(2, 30)
    resets = mx.arange(30)[None] == mx.array([11, 0])[:, None]
    old = model.forward(tokens(2, 8, seed=1)).cache
    out = model.forward(ids, old, resets=resets)
    for b, start in enumerate([11, 0]):
        fresh = model.forward(ids[b : b + 1, start:])
        assert_close(out.logits[b : b + 1, start:], fresh.logits)
        assert_close([[x[b : b + 1] for x in entry] for entry in out.cache], fresh.cache)


def test_before_a_reset_nothing_changes(model):
    ids, resets = tokens(1, 30), mx.arange(30)[None] == 20
    assert_close(logits(model, ids, resets=resets)[:, :20], logits(model, ids)[:, :20])


def test_same_bits_twice(model):
    ids = tokens(2, 20)
    assert mx.array_equal(model(ids), model(ids))


def test_the_cache_that_came_in_is_left_alone(model):
    cache = model.forward(tokens(1, 5)).cache
    kept = [[mx.array(x) for x in entry] for entry in cache]
    model.forward(tokens(1, 5, seed=1), cache)
    assert_close(cache, kept, 0)


def test_checkpointed_blocks_have_the_same_gradients(model):
    ids = tokens(2, 10)

    def gradients(keep: bool):
        model.checkpoint_blocks = keep
        loss = lambda p: with_parameters(model, p, lambda: nn.losses.cross_entropy(model(ids), ids).sum())  # noqa: E731
        return mx.grad(loss)(model.trainable_parameters())

    stored, recomputed = gradients(False), gradients(True)
    assert_close(recomputed, stored, 1e-5)


# --- construction ---------------------------------------------------------------------------------------


def test_the_seed_is_the_model():
    one, same, other = (dict(tree_flatten(build(config(coupling=True), s).parameters())) for s in (3, 3, 4))
    assert all(mx.array_equal(one[n], same[n]) for n in one)
    assert not mx.array_equal(one["embedding.weight"], other["embedding.weight"])


def test_building_leaves_the_global_generator_alone():
    """nn.Linear and nn.Embedding draw numbers that are thrown away: no draw before changes the model."""
    mx.random.seed(1)
    one = build(config(), 0)
    mx.random.normal((3,))
    assert_close(build(config(), 0).parameters(), one.parameters(), 0)


@pytest.mark.parametrize("size", ["xs", "s"])
@pytest.mark.parametrize(
    "head", [{}, {"tie_embeddings": True}, {"tie_embeddings": True, "embedding_std": 0.02}]
)
def test_a_fresh_model_knows_nothing(size, head):
    fresh = build(configure("kssm", size, vocab_size=65, overrides=head))
    ids = mx.array(np.random.default_rng(0).integers(0, 65, (2, 65)))
    loss = nn.losses.cross_entropy(fresh(ids[:, :-1]), ids[:, 1:], reduction="mean").item()
    assert loss == pytest.approx(math.log(65), abs=0.1)


def test_a_spread_of_the_embedding_is_what_it_says_and_a_tied_head_has_its_scale():
    keys = {"tie_embeddings": True, "d_model": 256, "vocab_size": 99}
    hidden = mx.random.normal((3, 256), key=mx.random.key(0))
    for given, std, scale in ((0.02, 0.02, 1), (None, 1 / 16, 1 / 16)):
        model = build(config(**keys, embedding_std=given))
        assert np.array(model.embedding.weight).std() == pytest.approx(std, rel=0.02)
        expected = scale * np.array(hidden) @ np.array(model.embedding.weight).T
        np.testing.assert_allclose(np.array(model.project(hidden)), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="embedding_std is positive, got 0"):
        config(embedding_std=0.0)


@pytest.mark.parametrize("size, millions", [("xs", 0.1286), ("s", 0.7153), ("m", 18.96), ("l", 198.4)])
def test_sizes(size, millions):
    """The number of parameters, from the shapes alone: what is lazy is not allocated."""
    fresh = KSSM(configure("kssm", size, vocab_size=65, context=256))
    count = sum(p.size for _, p in tree_flatten(fresh.parameters()))
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
    assert fresh.args.memory == 256


def test_populations_start_as_documented():
    populations = build(config(n_groups=30, memory=64), 0).blocks[0].mixer.populations
    gamma = mx.exp(populations.log_gamma)
    assert gamma.min().item() == pytest.approx(1 / 64) and gamma.max().item() == pytest.approx(0.5)
    assert populations.omega.min().item() >= 0 and populations.omega.max().item() <= math.pi / 2
    assert (populations.omega < math.pi / 20).sum().item() >= 15
    _, dt = populations.drive(mx.random.normal((2, 3, 16), key=mx.random.key(0)), None)
    np.testing.assert_allclose(dt, 1, atol=1e-5)
    strength = mx.sqrt((populations.field.weight**2).sum(axis=1))
    order = np.argsort(np.array(populations.log_gamma))
    slow, fast = strength[mx.array(order[:10])].mean(), strength[mx.array(order[10:])].mean()
    assert slow.item() < 0.5 * fast.item()


def test_a_fresh_field_is_as_weak_as_memory_needs():
    trace = build(configure("kssm", "s", vocab_size=65)).forward(mx.arange(64)[None]).trace
    assert all(0.02 < trace[f"block{i:02d}/h"].mean().item() < 0.2 for i in range(3))


def test_names_without_decay_exist():
    names = [n for n, _ in tree_flatten(build(config(coupling=True, **BOTH)).parameters())]
    for suffix in KSSM.no_decay:
        assert any(n.endswith(suffix) for n in names), suffix
    left = {n.split(".", 2)[-1] for n in names if not n.endswith(KSSM.no_decay)}
    assert all(n.endswith("weight") for n in left) and not any("norm" in n for n in left)


def test_bf16_keeps_the_physics_in_fp32():
    model, ids = awake("coupled"), tokens(2, 30)
    full = model(ids)
    keep = model.cast_predicate
    cast = tree_map_with_path(lambda name, p: p.astype(mx.bfloat16) if keep(name) else p, model.parameters())
    kept = {n.rsplit("populations.")[-1] for n, p in tree_flatten(cast) if p.dtype == mx.float32}
    assert kept == {"omega", "log_gamma", "coupling", "time_step.bias"}
    out = with_parameters(model, cast, lambda: model.forward(ids))
    assert out.logits.dtype == mx.bfloat16
    assert out.cache[0][1].dtype == out.trace["block00/R"].dtype == mx.float32
    scale = mx.abs(full).max().item()
    np.testing.assert_allclose(np.array(out.logits.astype(mx.float32)) / scale, full / scale, atol=0.1)


def test_quantised_layers_leave_the_physics():
    names = [n for n, m in build(config()).named_modules() if isinstance(m, nn.Linear)]
    chosen = {n.rsplit(".")[-1] for n in names if build(config()).quant_predicate(n, None)}
    assert chosen == {"in_proj", "out_proj", "up_gate", "down", "head"}


def test_kappa_below_zero_is_refused():
    with pytest.raises(ConfigError, match="kappa must be >= 0"):
        KSSMConfig(vocab_size=5, kappa=-0.1)


# --- physics --------------------------------------------------------------------------------------------


def count(model) -> int:
    """Of all populations of a block."""
    return model.args.phases + model.args.balls


def test_trace_names_and_shapes(model):
    out = model.forward(tokens(3, 5))
    names = {"R", "psi", "h", "dt", "lyapunov", "state"}
    if model.args.spheres:
        names |= {"tilt", "angle"}
    if model.args.wells:
        names |= {"well", "from_well"}
    units = dict.fromkeys(("tilt", "angle", "well", "from_well"), model.args.balls)
    if model.args.expansion:
        names |= {"mean_R", "mean_h"}
        units |= dict.fromkeys(("mean_R", "mean_h"), model.args.n_groups)
    assert out.trace.keys() == {f"block{i:02d}/{n}" for i in (0, 1) for n in names}
    for name, value in out.trace.items():
        kind = name.split("/")[1]
        assert kind == "state" or value.shape == (3, 5, units.get(kind, count(model)))
        assert mx.isfinite(value).all().item()
    if not model.args.spheres:
        R, psi, state = (out.trace[f"block01/{n}"] for n in ("R", "psi", "state"))
        np.testing.assert_allclose(state[:, 0], (R * mx.cos(psi))[:, -1], atol=1e-6)
        np.testing.assert_allclose(state[:, 1], (R * mx.sin(psi))[:, -1], atol=1e-6)
        assert mx.array_equal(state, out.cache[1][1])


def test_order_parameters_stay_in_the_disc():
    model = awake()
    for block in model.blocks:
        block.mixer.populations.field.weight = 30 * block.mixer.populations.field.weight
    trace = model.forward(tokens(2, 60)).trace
    assert 0.99 < trace["block00/R"].max().item() <= 1 + 1e-4
    assert all(mx.isfinite(v).all().item() for n, v in trace.items())


@pytest.mark.parametrize("variant", ["kick", "linear", "half", "hold"])
def test_lyapunov_is_the_derivative_of_a_step(variant):
    """ln |dz_t/dz_{t-1}| of the trace against the vjp of one step, lane by lane."""
    populations = awake(variant).blocks[0].mixer.populations
    u = mx.random.normal((2, 6, 16), key=mx.random.key(1))
    z0 = Planar(*(0.3 * mx.random.normal((2, 8), key=mx.random.key(k)) for k in (2, 3)))
    h, dt = populations.drive(u, None)
    z = populations.evolve(h, dt, z0)
    got = populations.lyapunov(z, z0, h, dt)
    for t in range(6):
        before = z0 if t == 0 else z.map(lambda x, t=t: x[:, t - 1])
        one = lambda x, t=t: x[:, t : t + 1]  # noqa: E731

        def step(re, im, one=one):
            after = populations.evolve(h.map(one), one(dt), Planar(re, im))
            return [after.re[:, 0]]

        _, (re, im) = mx.vjp(step, [before.re, before.im], [mx.ones_like(before.re)])
        np.testing.assert_allclose(got[:, t], np.log(np.hypot(re, im)), atol=1e-4)


@pytest.mark.parametrize("variant", ["kick", "hold"])
def test_the_first_token_of_a_document_has_the_exponent_of_a_fresh_start(variant):
    """A convolution of width 1: the exponent after a reset depends on that document alone."""
    model, ids = build(config(conv_width=1, leaf=variant)), tokens(2, 8)
    carried = model.forward(tokens(2, 5, seed=1)).cache
    fresh = model.forward(ids, resets=mx.zeros((2, 8), mx.bool_)).trace["block00/lyapunov"]
    first = mx.broadcast_to(mx.arange(8) == 0, (2, 8))
    got = model.forward(ids, carried, resets=first).trace["block00/lyapunov"]
    np.testing.assert_allclose(got, fresh, atol=1e-6)


def test_coupling_is_off_at_the_start_and_reaches_upwards_only():
    model, plain, ids = build(config(coupling=True)), build(config()), tokens(2, 20)
    assert mx.array_equal(model(ids), plain(ids))
    free = model.forward(ids)
    model.blocks[1].mixer.populations.coupling = 0.5 * mx.ones((2, 8))
    coupled = model.forward(ids)
    assert mx.abs(coupled.logits - free.logits).max().item() > 1e-4
    assert mx.array_equal(coupled.trace["block00/R"], free.trace["block00/R"])
    assert not mx.array_equal(coupled.trace["block01/R"], free.trace["block01/R"])
    assert "coupling" not in model.blocks[0].mixer.populations


def test_short_holds_are_kicks():
    """Both leaves are one flow as the time step goes to zero; over equally many steps the gap is order 2."""
    kick, hold = (build(config(leaf=leaf)).blocks[0].mixer.populations for leaf in ("kick", "hold"))
    h, z0 = Planar(*mx.random.normal((2, 2, 50, 8), key=mx.random.key(1))), Planar.zeros((2, 8))

    def gap(dt):
        times = mx.full((2, 50, 8), dt)
        return mx.sqrt((kick.evolve(h, times, z0) - hold.evolve(h, times, z0)).abs2).max().item()

    assert gap(0.02) < 0.02
    assert gap(0.01) == pytest.approx(gap(0.02) / 4, rel=0.2)


# --- interventions --------------------------------------------------------------------------------------


def clamped(model, ids, *clamps, cache=None):
    return model.forward(ids, cache, Intervention(tuple(clamps)))


def test_R_is_held_exactly_where_it_was_asked(model):
    ids = tokens(2, 12)
    free = model.forward(ids).trace
    held = clamped(model, ids, Clamp("R", 0.25, block=0, units=(1, 5), start=3, stop=7)).trace
    inside = np.zeros((2, 12, count(model)), bool)
    inside[:, 3:7, [1, 5]] = True
    R, psi = np.array(held["block00/R"]), np.array(held["block00/psi"])
    np.testing.assert_allclose(R[inside], 0.25, rtol=1e-6)
    np.testing.assert_array_equal(R[~inside], np.array(free["block00/R"])[~inside])
    np.testing.assert_allclose(psi, free["block00/psi"], atol=2e-6)


def test_psi_is_held_exactly_where_it_was_asked(model):
    ids = tokens(2, 12)
    free = model.forward(ids).trace
    held = clamped(model, ids, Clamp("psi", -1.5, block=0, start=10)).trace
    np.testing.assert_allclose(held["block00/psi"][:, 10:], -1.5, rtol=1e-6)
    np.testing.assert_array_equal(held["block00/psi"][:, :10], free["block00/psi"][:, :10])
    np.testing.assert_allclose(held["block00/R"], free["block00/R"], atol=1e-6)


def test_a_value_per_token_and_unit():
    model, ids = awake(), tokens(2, 6)
    value = mx.random.uniform(shape=(2, 6, 8), key=mx.random.key(0))
    held = clamped(model, ids, Clamp("R", value, block=1)).trace["block01/R"]
    np.testing.assert_allclose(held, value, rtol=1e-5)


def test_a_readout_clamp_leaves_the_state_alone(model):
    ids = tokens(2, 12)
    free, held = model.forward(ids), clamped(model, ids, Clamp("R", 0.9, block=0, start=3, stop=6))
    assert mx.array_equal(held.cache[0][1], free.cache[0][1])
    assert mx.abs(held.logits[:, 3:6] - free.logits[:, 3:6]).max().item() > 1e-4
    assert mx.array_equal(held.trace["block00/R"][:, 6:], free.trace["block00/R"][:, 6:])


def test_a_state_clamp_carries_forward(model):
    ids = tokens(2, 12)
    clamp = Clamp("R", 0.9, block=0, start=3, stop=6, where="state")
    free, held = model.forward(ids), clamped(model, ids, clamp)
    np.testing.assert_allclose(held.trace["block00/R"][:, 3:6], 0.9, rtol=1e-5)
    np.testing.assert_allclose(held.trace["block00/R"][:, :3], free.trace["block00/R"][:, :3], atol=1e-6)
    assert mx.abs(held.trace["block00/R"][:, 6] - free.trace["block00/R"][:, 6]).max().item() > 1e-3
    assert mx.abs(held.cache[0][1] - free.cache[0][1]).max().item() > 1e-6


def test_padding_keeps_the_state_under_a_clamp(model):
    """A clamp that begins on the padding of a row leaves the state that the row carries away."""
    ids, lengths = tokens(2, 8), mx.array([5, 8])
    clamp = Intervention((Clamp("R", 0.9, block=0, start=6, where="state"),))
    free = model.forward(ids, lengths=lengths).cache[0][1]
    held = model.forward(ids, None, clamp, lengths=lengths).cache[0][1]
    np.testing.assert_allclose(held[0], free[0], atol=1e-6)
    size = mx.linalg.norm(held[1], axis=0)
    R = sphere_order(size) if model.args.dimension == 3 else size
    np.testing.assert_allclose(R, 0.9, rtol=1e-5)


def test_a_state_clamp_to_what_the_state_is_changes_nothing(model):
    ids = tokens(2, 12)
    free = model.forward(ids)
    clamp = Clamp("R", free.trace["block00/R"][:, 4:5], block=0, start=4, stop=5, where="state")
    assert_close(clamped(model, ids, clamp).logits, free.logits)


@pytest.mark.parametrize(
    "start, stop", [(0, None), (0, 0), (5, 5), (9, 40), (30, None), (-3, 2), (3, 1), (0, -1)]
)
def test_any_token_range(start, stop):
    model, ids = awake(), tokens(1, 10)
    expected = set(range(max(0, start), min(10, 10 if stop is None else stop)))
    for where in ("readout", "state"):
        out = clamped(model, ids, Clamp("R", 0.5, start=start, stop=stop, where=where))
        R = np.array(out.trace["block00/R"])
        assert out.logits.shape == (1, 10, V) and R.shape == (1, 10, 8)
        assert {t for t in range(10) if np.allclose(R[0, t], 0.5, atol=1e-6)} == expected


def test_a_silenced_block_is_taken_out(model):
    ids = tokens(2, 9)
    out = clamped(model, ids, Clamp("output", 0.0, block=0), Clamp("output", 0.0, block=1))
    bare = model.project(model.norm(model.embedding(ids)))
    assert_close(out.logits, bare, 1e-6)


def test_the_output_is_held_on_a_range_of_tokens_and_channels():
    model, ids = awake(), tokens(2, 9)
    model.blocks = model.blocks[:1]
    free, _, _ = model.hidden(ids)
    clamp = Intervention((Clamp("output", 0.0, units=(0, 1), start=4, stop=6),))
    model.norm = nn.Identity()
    stream, held = model.hidden(ids)[0], model.hidden(ids, None, clamp)[0]
    np.testing.assert_allclose(held[:, 4:6, :2], model.embedding(ids)[:, 4:6, :2], atol=1e-6)
    np.testing.assert_array_equal(held[..., 2:], stream[..., 2:])
    np.testing.assert_array_equal(held[:, 6:], stream[:, 6:])
    assert free.shape == held.shape


def test_an_intervention_is_recorded():
    clamps = (
        Clamp("R", 0.25, block=0, units=(1,), start=2, stop=4),
        Clamp("psi", mx.zeros((1, 3, 8)), where="state"),
    )
    trace = clamped(awake(), tokens(1, 3), *clamps).trace
    assert trace["intervention"] == [
        "R=0.25 block=0 units=[1] tokens=2:4 readout",
        "psi=array[1, 3, 8] block=all units=all tokens=0: state",
    ]
    assert "intervention" not in awake().forward(tokens(1, 3)).trace


@pytest.mark.parametrize(
    "clamp, message",
    [
        (Clamp("r", 0.5), "no clamp site 'r'; this model has R, psi, output"),
        (Clamp("R", 0.5, block=2), "clamp on block 2, but the model has blocks 0 to 1"),
        (Clamp("R", 0.5, block=-1), "clamp on block -1"),
        (Clamp("R", 0.5, units=(8,)), r"clamp on units \[8\], but R has units 0 to 7"),
        (Clamp("output", 0.0, units=(16,)), r"output has units 0 to 15"),
        (Clamp("R", 0.5, where="sate"), "acts on 'readout' or 'state', got where='sate'"),
    ],
)
def test_a_clamp_that_would_do_nothing_is_refused(clamp, message):
    with pytest.raises(ConfigError, match=message):
        clamped(awake(), tokens(1, 3), clamp)
