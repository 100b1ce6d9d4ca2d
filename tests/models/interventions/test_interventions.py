"""Clamps of size, noise, silence and detachment: what they promise, in every family.

Source of the names U1 to U11: docs/background/allostasis.md#unit-tests.
"""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.model.sequence import future_leak
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Clamp, Intervention, with_parameters
from kssm_mlx.models.interventions.calibration import ModelWithIntervention, calibrate, require_effect
from kssm_mlx.models.interventions.freeze_units import units_of
from kssm_mlx.models.interventions.spec import (
    Amplitude,
    Detach,
    Noise,
    Observe,
    Silence,
    Statistics,
    carry_out,
)
from kssm_mlx.training.losses import cross_entropy, split_rows
from tests.support.small_families import FAMILIES, UNITS, T, awake, tokens
from tests.support.small_kssm import assert_close

pytestmark = pytest.mark.usefixtures("uncompiled")
every_family = pytest.mark.parametrize("family", FAMILIES)
RECURRENT = [family for family in FAMILIES if family != "transformer"]
every_recurrence = pytest.mark.parametrize("family", RECURRENT)


DECIDES = {  # a parameter of the routing that nothing else reads
    "transformer": "qkv.weight",
    "mamba": "dt_proj.bias",
    "mamba2": "dt_bias",
    "rwkv": "key.weight",
    "rwkv7": "k_proj.weight",
    "kssm": "time_step.bias",
    "kssm, expanded": "dt_proj.bias",
    "kssm, expanded spheres": "dt_proj.bias",
}


def vectors(*shape, seed=0, offset=0.5):
    return offset + 2 * mx.random.normal(shape, key=mx.random.key(seed))


def under(*acts):
    return Intervention(acts=acts)


def held(model, *acts, rows=None, **options):
    return model.forward(tokens() if rows is None else rows, intervention=under(*acts), **options)


def norms(x, of=1):
    return mx.linalg.norm(mx.unflatten(x, -1, (of, -1)), axis=-1)


# --- what a clamp does to vectors ------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["token", "frozen", "batch"])
def test_a_naive_clamp_gives_the_norm_asked_for(scope):
    """U5: of every vector, or on average; per unit, each with its own target."""
    x, target = vectors(3, 5, 8), mx.array([2.0, 7.0])
    measured = Statistics.of(mx.unflatten(x, -1, (2, 4))) if scope == "frozen" else None
    y = carry_out(x, [Amplitude(scope=scope, of=2, target=target, measured=measured)])
    found = norms(y, 2) if scope == "token" else norms(y, 2).mean(axis=(0, 1))
    np.testing.assert_allclose(found, mx.broadcast_to(target, found.shape), rtol=1e-5)
    ratio = mx.unflatten(y / x, -1, (2, 4))
    np.testing.assert_allclose(ratio, mx.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-4)  # no turn


@pytest.mark.parametrize("scope", ["frozen", "batch"])
def test_a_mean_preserving_clamp_keeps_the_mean_and_sets_the_spread(scope):
    """U5."""
    x = vectors(4, 6, 8)
    own = Statistics.of(x[:, :, None])
    act = Amplitude(
        kind="mean-preserving", scope=scope, target=0.3, measured=own if scope == "frozen" else None
    )
    after = Statistics.of(carry_out(x, [act])[:, :, None])
    np.testing.assert_allclose(after.mean, own.mean, atol=1e-5)
    np.testing.assert_allclose(after.std, 0.3, rtol=1e-5)


@pytest.mark.parametrize("kind", ["naive", "mean-preserving"])
def test_a_clamp_to_what_is_there_changes_nothing(kind):
    """U5."""
    x = vectors(3, 5, 8)
    own = Statistics.of(mx.unflatten(x, -1, (4, 2)))
    act = Amplitude(
        kind=kind, scope="frozen", target=own.norm if kind == "naive" else own.std, measured=own, of=4
    )
    np.testing.assert_allclose(carry_out(x, [act]), x, rtol=1e-5, atol=1e-6)


def test_statistics_are_those_of_numpy():
    x = vectors(3, 5, 2, 4)
    own, a = Statistics.of(x), np.array(x)[:, :, 1]
    centred = a - a.mean(axis=(0, 1))
    expected = [np.linalg.norm(a, axis=-1).mean(), centred.std(ddof=1), np.sqrt((a**2).mean())]
    np.testing.assert_allclose(
        [own.norm[1].item(), own.std[1].item(), own.rms[1].item()], expected, rtol=1e-5
    )
    np.testing.assert_allclose(own.mean[1], a.mean(axis=(0, 1)), rtol=1e-4)


def test_after_a_layer_norm_variance_is_amplitude():
    """U1: sigma² = A² / (d - 1) at the output of a layer norm, within 1 %."""
    d = 64
    x = mx.fast.layer_norm(vectors(8, 16, d), mx.ones(d), mx.zeros(d), 1e-5)
    A = norms(x).mean()
    sigma2 = mx.square(mx.std(x, axis=-1, ddof=1).mean())
    np.testing.assert_allclose(sigma2, mx.square(A) / (d - 1), rtol=0.01)


# --- in a model -----------------------------------------------------------------------------------------


@every_family
def test_observing_changes_nothing_and_shows_every_site(family):
    model = awake(family)
    out = held(model, Observe())
    assert mx.array_equal(out.logits, model.forward(tokens()).logits)
    assert_close(model.project(out.trace["S1"]), out.logits, 0)
    assert_close(model.finish(out.trace["S0"]), out.trace["S1"], 0)


@every_family
def test_a_naive_clamp_before_the_final_norm_does_nothing_and_is_refused(family):
    """U2, X4."""
    model = awake(family)
    act = Amplitude(site="S0", target=11.4)
    spread = mx.std(model.forward(tokens()).logits).item()
    far = ModelWithIntervention(model, under(Amplitude(site="S0", target=500.0)))
    assert mx.abs(held(model, act).logits - far.forward(tokens()).logits).max().item() < 2e-2 * spread
    with pytest.raises(ConfigError, match=r"naive token clamp at S0 to 11\.4 .* does nothing"):
        require_effect(model, under(act), head_is_trained=False)
    own = calibrate(model, [tokens()])["S0", 0]
    useful = Amplitude(site="S0", kind="mean-preserving", scope="frozen", target=2 * own.std, measured=own)
    assert require_effect(model, under(useful), head_is_trained=True) == []
    assert mx.abs(held(model, useful).logits - model.forward(tokens()).logits).max().item() > 1e-2 * spread


@every_family
def test_a_naive_clamp_before_the_head_keeps_the_first_choice_and_warns(family):
    """U4: a positive scale of every token, of a head without bias."""
    model = awake(family, **({"tie_embeddings": True} if family == "transformer" else {}))
    act = Amplitude(site="S1", target=0.7)
    out = held(model, act)
    assert mx.array_equal(out.logits.argmax(-1), model.forward(tokens()).logits.argmax(-1))
    np.testing.assert_allclose(norms(out.trace["S1"]), 0.7, rtol=1e-4)
    (warning,) = require_effect(model, under(act), head_is_trained=True)
    assert "the head is trained and can undo it" in warning
    assert require_effect(model, under(act), head_is_trained=False) == []


def test_clamping_down_and_disturbing_is_disturbing_more():
    """U3: of a head without bias, clamp s and noise sigma choose as no clamp and noise sigma / s."""
    model = awake("mamba")
    noise = lambda level: Noise(site="S4", level=level, seed=5)  # noqa: E731
    size = norms(held(model, Observe()).trace["S1"]).mean()
    frozen = calibrate(model, [tokens()])["S1", 0]
    small = Amplitude(site="S1", scope="frozen", target=0.25 * size, measured=frozen)
    clamped = held(model, small, noise(0.1)).logits
    free = held(model, noise(0.4)).logits
    np.testing.assert_allclose(clamped, 0.25 * free, rtol=1e-3, atol=1e-4)


@every_family
def test_units_are_clamped_each_to_its_own_size(family):
    model, target = awake(family), mx.array([1.0, 2.0, 3.0, 4.0])
    out = held(model, Amplitude(site="S2", target=target, of=UNITS, block=0))
    found = norms(out.trace["block00/units"], UNITS)
    np.testing.assert_allclose(found, mx.broadcast_to(target, found.shape), rtol=1e-3)
    assert not mx.allclose(out.logits, model.forward(tokens()).logits)


@every_family
def test_silent_units_are_units_whose_columns_are_zero(family):
    """Silence is what zeroing the projection's columns of these units does, in every block."""
    model = awake(family)
    silent = held(model, Silence(units=(1, 3), of=UNITS)).logits
    parameters = dict(tree_flatten(model.parameters()))
    units = units_of(model, UNITS)
    for path, axis, start, stop in (*units.slack[1], *units.slack[3]):
        if axis == 1 or path.endswith("readout.weight"):  # columns of the way out
            columns = mx.arange(parameters[path].shape[1])
            gone = (columns >= start) & (columns < stop)
            parameters[path] = mx.where(gone, 0, parameters[path])
    model.load_weights(list(parameters.items()))
    assert_close(silent, model.forward(tokens()).logits, 1e-5)


@every_family
def test_detached_routing_learns_nothing_and_computes_the_same(family):
    model = awake(family)
    inputs, targets = split_rows(tokens(2, T))

    def gradient(*acts):
        def loss(params):
            out = with_parameters(model, params, lambda: model.forward(inputs, intervention=under(*acts)))
            return cross_entropy(out.logits, targets)[0]

        value, grads = mx.value_and_grad(loss)(model.trainable_parameters())
        return value, dict(tree_flatten(grads))

    value, plain = gradient(Observe())
    same, cut = gradient(Detach(units=(0, 1), of=UNITS))
    np.testing.assert_allclose(same, value, rtol=1e-6)
    units = units_of(model, UNITS)
    decides = DECIDES[family]
    for unit, still in ((0, True), (1, True), (2, False), (3, False)):
        for path, axis, start, stop in units.routing[unit]:
            if path.endswith(decides):
                part = np.moveaxis(np.array(cut[path]), axis, 0)[start:stop]
                assert (part == 0).all() == still, (path, unit)
                assert (np.moveaxis(np.array(plain[path]), axis, 0)[start:stop] != 0).any()


ACTS = {
    "token": lambda own, site: Amplitude(site=site, target=0.5, of=UNITS),
    "frozen": lambda own, site: Amplitude(
        site=site, scope="frozen", target=0.5, of=UNITS, measured=own[site, 0]
    ),
    "mean-preserving": lambda own, site: Amplitude(
        site=site, kind="mean-preserving", scope="frozen", target=0.1, of=UNITS, measured=own[site, 0]
    ),
}


@every_recurrence
@pytest.mark.parametrize("kind", ACTS)
def test_a_clamped_state_is_the_same_wherever_the_text_is_cut(family, kind):
    model, rows = awake(family), tokens(2)
    own = calibrate(model, [rows], of=UNITS)
    act = ACTS[kind](own, "S3")
    whole = held(model, act, rows=rows)
    first = held(model, act, rows=rows[:, :5])
    rest = model.forward(rows[:, 5:], first.cache, under(act))
    assert_close(mx.concatenate([first.logits, rest.logits], axis=1), whole.logits)
    assert_close(rest.cache, whole.cache)
    assert not mx.allclose(whole.logits, model.forward(rows).logits, atol=1e-4)
    together = held(model, act, rows=rows, lengths=mx.array([5, T]))
    assert_close(
        [[x[:1] for x in entry] for entry in together.cache],
        [[x[:1] for x in entry] for entry in first.cache],
    )


@every_recurrence
def test_a_clamped_state_has_its_size(family):
    model = awake(family)
    out = held(model, Amplitude(site="S3", target=0.5, of=UNITS, block=0))
    view = model.state_view(out.cache[0])
    np.testing.assert_allclose(norms(view, UNITS), 0.5, rtol=1e-3)


def test_a_population_stays_in_the_disc_and_phase_noise_keeps_its_order():
    model = awake("kssm")
    out = held(model, Amplitude(site="S3", target=9.0, of=UNITS))
    assert mx.linalg.norm(out.cache[0][1], axis=1).max().item() <= 1 + 1e-6
    R = lambda out: mx.linalg.norm(out.cache[0][1], axis=1)  # noqa: E731
    one = tokens(2, 1)
    noisy = held(model, Noise(site="S3", level=0.5), rows=one)
    assert_close(R(noisy), R(model.forward(one)), 1e-5)
    assert not mx.allclose(noisy.cache[0][1], model.forward(one).cache[0][1])


@every_family
@pytest.mark.parametrize("site", ["S2", "S3", "S4"])
def test_noise_has_its_level_is_repeatable_and_follows_the_key(family, site):
    model, rows = awake(family), tokens(2)
    if site not in model.act_sites:
        with pytest.raises(ConfigError, match="this model has the sites"):
            held(model, Noise(site=site))
        return
    clean = model.forward(rows).logits
    assert_close(held(model, Noise(site=site, level=0.0), rows=rows).logits, clean)
    noisy = held(model, Noise(site=site, level=0.2), rows=rows).logits
    assert mx.array_equal(noisy, held(model, Noise(site=site, level=0.2), rows=rows).logits)
    others = [
        held(model, Noise(site=site, level=0.2, seed=1), rows=rows).logits,
        held(model, Noise(site=site, level=0.2), rows=rows, key=mx.random.key(3)).logits,
    ]
    assert all(not mx.allclose(noisy, other, atol=1e-4) for other in [clean, *others])


@every_family
@pytest.mark.parametrize("site", ["S1", "S2", "S3"])
def test_units_that_do_not_divide_their_site_are_told_before_a_run(family, site):
    model = awake(family)
    if site in model.act_sites:
        told = rf"clamp at {site} .*: 7 units cannot share the \d+ channels of {site} in block 0"
        with pytest.raises(ConfigError, match=told):
            require_effect(model, under(Amplitude(site=site, of=7)), head_is_trained=False)


def test_what_is_silenced_drives_nothing_above():
    """X2: out of the readout, and out of the field of the block above; what is left still drives it."""
    model = awake("kssm")
    populations = model.layers[0].mixer.populations
    omega = populations.omega
    all_silent, one_silent = Silence(block=0), Silence(block=0, units=(1,), of=UNITS)
    before = [held(model, act).logits for act in (all_silent, one_silent)]
    populations.omega = omega + 1
    assert mx.array_equal(held(model, all_silent).logits, before[0])
    assert mx.abs(model.forward(tokens()).logits - before[0]).max().item() > 1e-2
    populations.omega = omega + mx.where(mx.arange(8) // 2 == 1, 1.0, 0.0)
    assert mx.array_equal(held(model, one_silent).logits, before[1])
    populations.omega = omega + mx.where(mx.arange(8) // 2 == 2, 1.0, 0.0)
    assert mx.abs(held(model, one_silent).logits - before[1]).max().item() > 1e-3


def test_the_level_of_noise_is_relative_to_the_clean_size_of_its_unit():
    x, rms = mx.zeros((64, 32, 8)), mx.array([0.5, 3.0])
    y = carry_out(x, [Noise(level=0.2, rms=rms, of=2)])
    found = mx.sqrt(mx.square(mx.unflatten(y, -1, (2, 4))).mean(axis=(0, 1, 3)))
    np.testing.assert_allclose(found, 0.2 * rms, rtol=0.03)


# --- scopes, refusals, gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("scope, leaks", [("token", False), ("frozen", False), ("batch", True)])
def test_the_leak_check_flags_statistics_of_the_batch(scope, leaks):
    model = awake("mamba")
    own = calibrate(model, [tokens()])["S1", 0] if scope == "frozen" else None
    clamped = ModelWithIntervention(model, under(Amplitude(site="S1", scope=scope, target=1.0, measured=own)))
    assert future_leak(Context(model=clamped)).ok is not leaks


def test_statistics_of_the_batch_cannot_generate():
    model = awake("mamba")
    act = Amplitude(site="S1", scope="batch")
    with pytest.raises(ConfigError, match="cannot be continued from a cache"):
        ModelWithIntervention(model, under(act))(tokens(1, 1), model.make_cache())
    with pytest.raises(ConfigError, match="held by an intervention already"):
        ModelWithIntervention(model, under(act)).forward(tokens(1, 1), intervention=under(act))


@every_family
def test_gradients_through_every_clamp_are_finite(family):
    """U11, also of a vector that is zero."""
    model, rows = awake(family), tokens(2)
    own = calibrate(model, [rows], of=UNITS)
    inputs, targets = split_rows(rows)
    acts = [Amplitude(site="S1", target=2.0), *(make(own, "S2") for make in ACTS.values())]
    acts += [Amplitude(site="S1", scope="batch", kind="mean-preserving", target=0.5)]
    for act in acts:
        loss = lambda p, act=act: cross_entropy(  # noqa: E731
            with_parameters(model, p, lambda: model.forward(inputs, intervention=under(act)).logits), targets
        )[0]
        value, grads = mx.value_and_grad(loss)(model.trainable_parameters())
        assert all(mx.isfinite(g).all().item() for _, g in [("loss", value), *tree_flatten(grads)])
    zero = mx.grad(lambda x: carry_out(x, [acts[0]]).sum())(mx.zeros((1, 2, 4)))
    assert mx.isfinite(zero).all().item()


def test_a_vector_without_direction_is_left_as_it_is():
    """Scaled to a size, what rounding left of a zero would become a vector in a random direction."""
    naive = Amplitude(site="S1", target=2.0)
    rest = mx.array([[[1e-13, -2e-13, 0.0, 1e-13]]])
    for x in (mx.zeros((1, 1, 4)), rest):
        assert mx.array_equal(carry_out(x, [naive]), x)
        assert mx.array_equal(mx.grad(lambda x: carry_out(x, [naive]).sum())(x), mx.ones((1, 1, 4)))
    still = Amplitude(site="S1", scope="batch", kind="mean-preserving", target=0.5)
    same = mx.full((2, 3, 4), 3.0)
    assert mx.array_equal(carry_out(same, [still]), same)


def test_acts_and_gradient_checkpoints_go_together():
    model, rows = awake("kssm"), tokens(2)
    inputs, targets = split_rows(rows)
    intervention = under(Amplitude(site="S2", target=1.0, of=UNITS), Noise(site="S2", level=0.1, of=UNITS))

    def gradient(checkpoint, key):
        model.checkpoint_blocks = checkpoint
        call = lambda: model.forward(inputs, intervention=intervention, key=key).logits  # noqa: E731
        return mx.grad(lambda p: cross_entropy(with_parameters(model, p, call), targets)[0])(
            model.trainable_parameters()
        )

    key = mx.random.key(1)
    assert_close(gradient(True, key), gradient(False, key), 1e-4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Amplitude(site="S4"), "S4 is for noise"),
        (lambda: Amplitude(kind="mean-preserving"), 'use scope "frozen"'),
        (lambda: Amplitude(scope="frozen"), "measured statistics go together"),
        (lambda: Amplitude(units=(4,), of=4), "units are 0 to 3"),
        (lambda: Silence(units=(), of=4), "an act on units .* of 4; units are 0 to 3, at least one"),
        (lambda: Silence(of=0), "an act on one of 0 equal parts"),
        (lambda: Amplitude(target=-3.0), "naive token clamp at S1 to -3.0 .*: a size is held at 0 or more"),
        (lambda: Amplitude(target=mx.array([1.0, -1.0]), of=2), "a size is held at 0 or more"),
        (lambda: Noise(level=float("nan")), "noise of level nan"),
        *(
            (lambda site=site: Amplitude(site=site, block=0), f"{site} is behind all blocks, got block 0")
            for site in ("S0", "S1")
        ),
        (lambda: Noise(block=1), "S4 is behind all blocks, got block 1; leave block out"),
        (lambda: Noise(site="S1"), "sites are S2, S3, S4"),
        (
            lambda: held(awake("transformer"), Amplitude(site="S3")),
            "at S3 .*: this model has the sites S0, S1",
        ),
        (lambda: held(awake("mamba"), Silence(block=2)), "the model has blocks 0 to 1"),
        (lambda: calibrate(awake("mamba"), []), "nothing to calibrate on"),
    ],
)
def test_what_would_be_ignored_or_mean_nothing_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_acts_and_clamps_are_described():
    both = Intervention((Clamp("output", 0.0, block=1),), (Silence(units=(1,), of=4), Noise(level=0.5)))
    assert both.describe() == [
        "silence block=all units=[1] of 4",
        "noise at S4 of 0.5 x rms 1.0 block=all units=all of 1",
        "output=0 block=1 units=all tokens=0: readout",
    ]
