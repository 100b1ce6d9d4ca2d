"""Populations on spheres in a K-SSM: how they start, what a document begins with, clamps, bad input."""

from __future__ import annotations

from dataclasses import asdict

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import build
from kssm_mlx.models.base import Clamp, Intervention
from kssm_mlx.models.interventions.freeze_units import units_of
from kssm_mlx.models.kssm import KSSM, KSSMConfig
from kssm_mlx.oscillators import ball
from tests.support.small_kssm import V, assert_close, awake, config, tokens

pytestmark = pytest.mark.usefixtures("uncompiled")


def spheres(model: KSSM):
    return model.blocks[0].mixer.spheres


def test_they_start_as_documented():
    model = build(config(n_groups=400, dimension=3, wells=6, rotation=1.5, start=0.8, memory=64))
    own = spheres(model)
    gamma = mx.exp(own.log_gamma)
    assert gamma.min().item() == pytest.approx(1 / 64) and gamma.max().item() == pytest.approx(0.5)
    np.testing.assert_allclose(mx.sigmoid(own.pull), 0.05, rtol=1e-5)
    np.testing.assert_allclose(mx.exp(own.sharpness), 7.5, rtol=1e-5)
    np.testing.assert_allclose(mx.linalg.norm(own.start, axis=0), 0.8, rtol=1e-5)
    np.testing.assert_allclose(mx.linalg.norm(own.wells, axis=1), 0.9, rtol=1e-5)
    # Uniform directions: a mean of 400 unit vectors is 0.05 long, give or take.
    for vectors in (own.start / 0.8, own.wells[0] / 0.9):
        assert mx.linalg.norm(vectors.mean(axis=1)).item() < 0.15
    u = mx.random.normal((4, 50, 16), key=mx.random.key(0))
    turn = own.drive(u, None).turn - own.omega * own.drive(u, None).dt[..., None, :]
    assert mx.std(turn).item() == pytest.approx(1.5, rel=0.1)


def test_the_first_ones_are_turned_by_tokens():
    own = spheres(build(config(dimension=3, turning=0.5)))
    u = mx.random.normal((2, 5, 16), key=mx.random.key(0))
    turn, dt = own.drive(u, None).turn, own.drive(u, None).dt
    left = turn - own.omega * dt[..., None, :]
    assert mx.abs(left[..., :4]).max().item() > 0.1 and mx.abs(left[..., 4:]).max().item() == 0
    assert "rotation" not in spheres(build(config(dimension=3, turning=0.0)))


def test_a_document_begins_at_the_start():
    """One token that says and turns nothing, on hardly any decay: the state is the start."""
    model = build(config(dimension=3, turning=0.0))
    own = spheres(model)
    own.omega, own.log_gamma = mx.zeros_like(own.omega), mx.full((8,), -20.0)
    own.field.weight = mx.zeros_like(own.field.weight)
    out = model.forward(tokens(2, 4), resets=mx.arange(4)[None] == mx.array([2, 0])[:, None])
    np.testing.assert_allclose(out.trace["block00/state"], mx.stack([own.start] * 2), atol=1e-5)


def test_R_is_that_of_oscillators_on_a_sphere():
    """The trace's R against the mean of 20,000 unit vectors that the same map has moved."""
    model = awake("spheres")
    out = model.forward(tokens(1, 1))
    a = np.array(out.cache[0][1], np.float64)[0].T
    x = np.random.default_rng(0).normal(size=(20_000, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    means = [ball.translate(point, x).mean(0) for point in a]
    R = np.array(out.trace["block00/R"])[0, 0]
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), R, atol=0.02)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_R_and_size_are_inverse(kappa):
    R = mx.array([0.0, 1e-6, 0.01, 0.3, 0.66, 0.67, 0.9, 0.999])
    size = ball.sphere_size(R, kappa)
    np.testing.assert_allclose(ball.sphere_order(size, kappa), R, atol=1e-6)
    if kappa == 1:
        np.testing.assert_allclose(R, ball.order_from_ball(np.array(size, np.float64), 3), atol=1e-6)


@pytest.mark.parametrize("where", ["readout", "state"])
def test_direction_is_held_by_its_two_angles(where):
    model, ids = awake("spheres"), tokens(2, 9)
    clamps = (Clamp("psi", 0.7, block=0, where=where), Clamp("tilt", 1.1, block=0, where=where))
    held = model.forward(ids, None, Intervention(clamps))
    np.testing.assert_allclose(held.trace["block00/psi"], 0.7, atol=1e-5)
    np.testing.assert_allclose(held.trace["block00/tilt"], 1.1, atol=1e-5)
    if where == "state":
        a = np.array(held.cache[0][1])
        expected = [np.sin(1.1) * np.cos(0.7), np.sin(1.1) * np.sin(0.7), np.cos(1.1)]
        unit = a / np.linalg.norm(a, axis=1, keepdims=True)
        np.testing.assert_allclose(unit, np.broadcast_to(np.array(expected)[:, None], a.shape), atol=1e-5)


def test_units_are_counted_over_both_kinds():
    model, ids = awake("both, wells"), tokens(1, 5)
    held = model.forward(ids, None, Intervention((Clamp("R", 0.4, block=0, units=(1, 6)),)))
    free = model.forward(ids)
    R, before = (np.array(x.trace["block00/R"])[0] for x in (held, free))
    np.testing.assert_allclose(R[:, [1, 6]], 0.4, atol=1e-6)
    rest = [0, 2, 3, 4, 5, 7]
    np.testing.assert_allclose(R[:, rest], before[:, rest], atol=1e-6)
    values = mx.random.uniform(shape=(1, 5, 8), key=mx.random.key(1))
    held = model.forward(ids, None, Intervention((Clamp("R", values, block=0),)))
    np.testing.assert_allclose(held.trace["block00/R"], values, atol=1e-5)


@pytest.mark.parametrize(
    "clamp, message",
    [
        (Clamp("tilt", 0.5, units=(1, 6)), r"clamp on the tilt of units \[1, 6\]: units below 3 have none"),
        (Clamp("R", 0.5, units=(8,)), r"clamp on units \[8\], but R has units 0 to 7"),
    ],
)
def test_a_clamp_on_what_is_not_there(clamp, message):
    with pytest.raises(ConfigError, match=message):
        awake("both, wells").forward(tokens(1, 3), None, Intervention((clamp,)))


def test_phases_have_no_tilt():
    with pytest.raises(ConfigError, match="no clamp site 'tilt'; this model has R, psi, output"):
        awake().forward(tokens(1, 3), None, Intervention((Clamp("tilt", 0.5),)))


@pytest.mark.parametrize("variant", ["spheres", "both, wells"])
def test_lyapunov_is_the_determinant_of_a_step(variant):
    """ln |det da_t / da_{t-1}| / 3 of the trace against the Jacobian of one token."""
    own = spheres(awake(variant))
    G = own.log_gamma.size
    u = mx.random.normal((1, 4, 16), key=mx.random.key(1))
    a0 = 0.3 * mx.random.normal((1, 3, G), key=mx.random.key(2))
    drive = own.drive(u, None)
    a = own.evolve(drive, a0)
    got = np.array(own.lyapunov(a, a0, drive))[0]
    for t in range(4):
        before = a0 if t == 0 else a[:, t - 1]
        one = type(drive)(*(x[:, t : t + 1] for x in drive))

        def step(x, one=one):
            return own.evolve(one, x)[:, 0]

        rows = []
        for i in range(3):
            pull = mx.zeros((1, 3, G))
            pull[:, i] = 1.0
            rows.append(np.array(mx.vjp(step, [before], [pull])[1][0])[0])
        jacobian = np.moveaxis(np.stack(rows), 2, 0)
        np.testing.assert_allclose(got[t], np.log(np.abs(np.linalg.det(jacobian))) / 3, atol=1e-4)


def test_wells_are_told():
    trace = awake("both, wells").forward(tokens(2, 6)).trace
    well, far = np.array(trace["block00/well"]), np.array(trace["block00/from_well"])
    assert well.shape == far.shape == (2, 6, 5) and set(np.unique(well)) <= set(range(4))
    assert np.all(far >= 0) and np.all(far < 2)


def test_a_state_view_goes_back_and_noise_turns_by_its_angle():
    for variant in ("spheres", "both, wells"):
        model = awake(variant)
        entry = model.forward(tokens(2, 6)).cache[0]
        view = model.state_view(entry)
        assert_close(model.with_state(entry, view), entry, 1e-6)
        turned = model.with_state(entry, model.perturb_state(view, 0.3 * mx.ones_like(view)))
        for before, after in zip(entry[1:], turned[1:]):
            sizes = [mx.linalg.norm(x, axis=1) for x in (before, after)]
            np.testing.assert_allclose(*sizes, atol=1e-5)
            assert mx.abs(before - after).max().item() > 1e-3


def test_silence_leaves_a_population_to_itself():
    """No field, no token turns it: after many tokens only decay and omega have acted."""
    model = build(config(dimension=3))
    z0 = 0.5 * mx.ones((2, 3, 8))
    gamma = mx.exp(spheres(model).log_gamma)
    sizes = mx.linalg.norm(model.free_states(0, 5, z0), axis=1)
    np.testing.assert_allclose(sizes, mx.linalg.norm(z0, axis=1) * mx.exp(-5 * gamma), rtol=1e-4)


def test_what_sets_the_dynamics_is_neither_cast_nor_quantised():
    model = build(config(dimension=3, wells=4))
    own = "blocks.0.mixer.spheres."
    for name in ("omega", "log_gamma", "start", "directions", "pull", "sharpness", "time_step.bias"):
        assert not model.cast_predicate(own + name)
    assert model.cast_predicate(own + "field.weight")
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    chosen = {n.rsplit(".")[-1] for n in names if model.quant_predicate(n, None)}
    assert chosen == {"in_proj", "out_proj", "up_gate", "down", "head"}


@pytest.mark.parametrize(
    "overrides, count, shared",
    [
        ({"dimension": 3, "wells": 2, "coupling": True}, 4, set()),
        ({"dimensions": {2: 4, 3: 4}, "wells": 2}, 2, set()),
        ({"dimension": 3, "turning": 0.5}, 4, {"spheres.rotation.weight"}),
    ],
)
def test_freeze_units_cover_every_parameter_once(overrides, count, shared):
    model = build(config(**overrides))
    units = units_of(model, count)
    own = {n: a for n, a in tree_flatten(model.parameters()) if ".mixer." in n}
    seen = {name: np.zeros(a.shape, int) for name, a in own.items()}
    for part in [p for group in (*units.routing, *units.slack, units.shared) for p in group]:
        np.moveaxis(seen[part.path], part.axis, 0)[part.start : part.stop] += 1
    assert {name for name, times in seen.items() if not (times == 1).all()} == set()
    common = {p.path.split("mixer.")[1] for p in units.shared}
    assert common == shared | {"in_proj.weight", "conv_weight", "conv_bias", "skip", "out_proj.weight"}


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"dimension": 4}, r"model.dimension is 2 \(phases\) or 3 \(spheres\), got 4"),
        ({"dimensions": {2: 4, 3: 5}}, r"n_groups = 8 populations .*got \{'2': 4, '3': 5\}"),
        ({"dimensions": {2: 8, 3: 0}}, r"got \{'2': 8, '3': 0\}"),
        ({"dimensions": {2: 4, 4: 4}}, r"such as \{ 2 = 96, 3 = 32 \}"),
        ({"wells": 4}, "model.wells is of spheres"),
        (
            {"sphere_field": 0.0},
            "model.sphere_field is of spheres; it wants model.dimension = 3",
        ),
        ({"dimension": 3, "sphere_field": -1.0}, "model.sphere_field is a strength, 0 or more, got -1"),
        ({"dimension": 3, "wells": -1}, "model.wells must be at least 0, got -1"),
        ({"dimension": 3, "leaf": "hold"}, 'populations on spheres have leaf = "kick"'),
        ({"dimension": 3, "controlled": True}, "no controlled"),
        ({"dimension": 3, "harmonics": 3}, "harmonics is 1 or 2 with populations on spheres, got 3"),
        (
            {"dimension": 3, "wells": 4, "pull": 1.0},
            "pull and model.reach are between 0 and 1, .* got 1, 0.9 and 7.5",
        ),
        ({"dimension": 3, "wells": 4, "sharpness": 0.0}, "sharpness positive, got 0.05, 0.9 and 0"),
        (
            {"shortest_memory": 200.0},
            "shortest_memory is a number of tokens up to model.memory, 128, got 200",
        ),
        ({"dimension": 3, "turning": 1.5}, "turning is a share, 0 to 1"),
        ({"dimension": 3, "start": 1.0}, "start a size, 0 to 1, got .* and 1"),
    ],
)
def test_what_cannot_be_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        KSSMConfig(vocab_size=V, **{"n_groups": 8, **overrides})


def test_a_mix_has_keys_as_a_file_has_them():
    made = config(dimensions={2: 3, "3": 5})
    assert made.dimensions == {"2": 3, "3": 5} and (made.discs, made.spheres) == (3, 5)
    assert dict(tree_flatten(asdict(made)))["dimensions.3"] == 5  # as checkpoints compare it
