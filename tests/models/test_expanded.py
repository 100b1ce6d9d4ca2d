"""K-SSM with an expanded state: Mamba where nothing is curved or turns, and populations everywhere else."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import build, configure
from kssm_mlx.models.base import Clamp, Intervention
from kssm_mlx.oscillators.ball import sphere_order, sphere_size
from kssm_mlx.training import observables
from tests.support.small_kssm import V, awake, config, tokens

pytestmark = pytest.mark.usefixtures("uncompiled")
EXPANDED = ("expanded", "expanded and spheres", "expanded spheres")
SMALL = {"expansion": 3, "n_groups": 32, "mlp_hidden": 0, "kappa": 0.0}


def test_without_curvature_and_rotation_it_is_mambas_mixer():
    """Mamba's states in pairs of equal decay are the two parts of ours; every weight has its counterpart."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 6}
    mamba = build(configure("mamba", "xs", vocab_size=V, overrides=sizes), seed=3)
    theirs = mamba.layers[0].mixer
    pairs = mx.concatenate([theirs.A_log[:, :3]] * 2, axis=1)
    theirs.A_log = pairs
    ours = build(config(n_layers=1, field=7.0, **SMALL)).blocks[0].mixer
    ours.in_proj.weight, ours.out_proj.weight = theirs.in_proj.weight, theirs.out_proj.weight
    ours.conv_weight, ours.conv_bias = theirs.conv1d.weight[..., 0], theirs.conv1d.bias
    own = ours.populations
    own.x_proj.weight, own.dt_proj.weight = theirs.x_proj.weight, theirs.dt_proj.weight
    own.dt_proj.bias, own.log_gamma, ours.skip = theirs.dt_proj.bias, pairs[:, :3], theirs.D
    x = mx.random.normal((2, 40, 16), key=mx.random.key(0))
    expected, (_, state), _ = theirs(x, [None, None], None, None)
    y, (_, carried), _, _ = ours(x, [None, None], None, (), None, None)
    np.testing.assert_allclose(np.array(y), np.array(expected), atol=1e-6)
    z = carried.reshape(2, 2, 32, 3) / 7
    np.testing.assert_allclose(np.array(mx.concatenate([z[:, 0], z[:, 1]], -1)), np.array(state), atol=1e-6)


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_field_bends_and_does_not_scale(dimension):
    """What is written and read is the same to first order in the field; R grows with it."""
    ids, found = tokens(2, 30), {}
    for kappa in (0.0, 1.0):
        for field in (0.01, 100.0):
            sizes = {"expansion": 4, "dimension": dimension, "start": 0.0}
            model = build(config(kappa=kappa, field=field, **sizes), seed=1)
            out = model.forward(ids)
            found[kappa, field] = np.array(out.logits), out.trace["block00/R"].mean().item()
    straight = found[0.0, 0.01][0]
    np.testing.assert_allclose(found[0.0, 100.0][0], straight, atol=1e-6)
    np.testing.assert_allclose(found[1.0, 0.01][0], straight, atol=1e-6)
    assert np.abs(found[1.0, 100.0][0] - straight).max() > 1e-5
    assert found[1.0, 100.0][1] > 1000 * found[1.0, 0.01][1]


def test_means_are_those_of_what_is_written_out():
    for variant in EXPANDED:
        model = awake(variant)
        trace = model.forward(tokens(3, 9)).trace
        N, channels = model.args.expansion, model.args.channels
        order, size = (sphere_order, sphere_size) if model.args.expanded_spheres else (lambda x: x,) * 2
        means = {"R": lambda x: order(mx.sqrt(mx.square(size(x)).mean(-1))), "h": lambda x: x.mean(-1)}  # noqa: B023
        for quantity, mean in means.items():
            every, told = trace[f"block01/{quantity}"], trace[f"block01/mean_{quantity}"]
            discs = mx.unflatten(every[..., : N * channels], -1, (-1, N))
            np.testing.assert_allclose(np.array(told[..., :channels]), np.array(mean(discs)), rtol=2e-5)
            rest = np.array(every[..., N * channels :])
            np.testing.assert_array_equal(np.array(told[..., channels:]), rest)


def test_a_row_of_metrics_has_the_means_and_nothing_that_costs_more():
    trace = awake("expanded").forward(tokens(3, 9)).trace
    row = observables.average_observables({k: v for k, v in trace.items() if k.startswith("block00/")})
    assert row.keys() == {"R_block00", "h_block00"}
    assert row["R_block00"].item() == trace["block00/mean_R"].mean().item()


@pytest.mark.parametrize("variant", ["expanded", "expanded spheres"])
def test_what_is_held_is_read(variant):
    """R of all populations in the state: what is read then is a sum of unit phases, and the logits move."""
    model, ids = awake(variant), tokens(2, 12)
    free, clamp = model.forward(ids), Clamp("R", 0.5, where="state")
    held = model.forward(ids, None, Intervention((clamp,)))
    np.testing.assert_allclose(np.array(held.trace["block00/R"]), 0.5, rtol=1e-6)
    # On a sphere |a| is R of the flow of that dimension, and not R itself.
    size = sphere_size(mx.array(0.5), 1.0).item() if model.args.balls else 0.5
    np.testing.assert_allclose(np.array(mx.linalg.norm(held.cache[0][1], axis=1)), size, rtol=1e-6)
    assert mx.abs(held.logits - free.logits).max().item() > 1e-3
    after = Intervention((Clamp("R", 0.5, start=12),))
    np.testing.assert_allclose(
        np.array(model.forward(ids, None, after).logits), np.array(free.logits), atol=2e-5
    )


@pytest.mark.parametrize("variant", EXPANDED)
def test_gradients_reach_every_parameter(variant):
    model, ids = awake(variant), tokens(2, 16)

    def loss(params):
        model.update(params)
        return mx.square(model.forward(ids).logits).mean()

    params = model.trainable_parameters()
    for name, slope in tree_flatten(mx.grad(loss)(params)):
        assert mx.isfinite(slope).all() and mx.abs(slope).max().item() > 0, name


def test_spheres_beside_expanded_populations_have_a_field_of_their_own():
    """That of the others is a scale, such as 10, which would hold every sphere at |a| = 1."""
    mix = {"expansion": 2, "n_groups": 64, "dimensions": {"2": 32, "3": 32}}

    def strength(**keys):
        weight = build(config(**mix, **keys), seed=1).blocks[0].mixer.spheres.field.weight
        loud = mx.sort(mx.square(weight).mean(1))[32:].mean().item()  # a third of the lanes begins quiet
        return (loud * weight.shape[1]) ** 0.5

    usual = strength(field=0.3)
    assert strength(field=10.0) == usual and 0.2 < usual < 0.4
    assert strength(field=10.0, sphere_field=0.03) == pytest.approx(usual / 10)
    alone = build(config(dimension=3, field=0.6), seed=1).blocks[0].mixer.spheres.field.weight
    again = build(config(dimension=3, sphere_field=0.6), seed=1).blocks[0].mixer.spheres.field.weight
    assert mx.array_equal(alone, again)


def test_a_token_turns_as_many_populations_as_it_is_told():
    """By its own angular velocity and the channel's time step; the others do not turn at first."""
    model = build(config(expansion=4, dimension=3, turning=0.5, rotation=1.5), seed=1)
    angle = mx.unflatten(model.forward(tokens(3, 20)).trace["block00/angle"], -1, (-1, 4))
    assert mx.abs(angle[..., 2:]).max() == 0 and angle[..., :2].min() > 0
    still = build(config(expansion=4, dimension=3, turning=0.0), seed=1)
    assert still.forward(tokens(3, 20)).trace["block00/angle"].max() == 0
    assert still.blocks[0].mixer.spheres.x_proj.weight.shape[0] == 1 + 6 * 4


def test_rotation_is_the_scale_of_turns_and_memory_that_of_friction():
    made = [
        build(config(expansion=4, dimension=3, rotation=r, memory=m), seed=1) for r, m in ((1, 64), (2, 640))
    ]
    once, twice = (model.forward(tokens(2, 8)).trace["block00/angle"] for model in made)
    np.testing.assert_allclose(np.array(twice), 2 * np.array(once), rtol=1e-5)
    slow, slower = (model.blocks[0].mixer.spheres.gamma for model in made)
    np.testing.assert_allclose(np.array(slow), 10 * np.array(slower), rtol=1e-5)
    # In a channel of the usual time step, 0.01, the slowest of four has lost 1/e after `memory` tokens.
    np.testing.assert_allclose(np.array(slow), np.tile(np.arange(1, 5) / 0.64, (8, 1)), rtol=1e-5)


def test_rotations_of_different_axes_do_not_commute():
    """Two tokens in either order leave different states, of spheres and not of phases; fields are off."""
    states = {}
    for dimension in (2, 3):
        sizes = {"expansion": 4, "dimension": dimension, "n_layers": 1, "conv_width": 1}
        model = build(config(rotation=30.0, **sizes), seed=2)
        populations = model.blocks[0].mixer.expanded
        populations._field = 1e-9
        a = model.forward(mx.array([[3, 5], [5, 3]])).cache[0][1]
        states[dimension] = mx.abs(a[0] - a[1]).max().item()
    assert states[2] < 1e-6 and states[3] > 0.1


@pytest.mark.parametrize("variant", ["expanded", "expanded spheres"])
def test_lyapunov_is_the_derivative_of_a_step(variant):
    """ln |det| / C of the trace against the Jacobian of one step, lane by lane."""
    populations = awake(variant).blocks[0].mixer.expanded
    C, I, N = populations.components, *populations.log_gamma.shape
    u = mx.random.normal((1, 1, I), key=mx.random.key(1))
    state = 0.3 * mx.random.normal((1, C, I * N), key=mx.random.key(2))
    got = populations.run(u, state).trace["lyapunov"][0, 0]
    rows = []
    for i in range(C):
        pull = mx.broadcast_to((mx.arange(C) == i)[:, None].astype(mx.float32), state.shape)
        rows.append(mx.vjp(lambda z: populations.run(u, z).carried, [state], [pull])[1][0][0].T)
    jacobian = np.stack([np.array(row) for row in rows], axis=1)
    np.testing.assert_allclose(np.array(got), np.log(np.abs(np.linalg.det(jacobian))) / C, atol=1e-4)


@pytest.mark.parametrize("variant", ["spheres", "expanded spheres"])
def test_documents_begin_within_the_ball_wherever_start_has_gone(variant):
    """Outside of it a translation has poles; inside, not a bit of it changes."""
    model, ids = awake(variant), tokens(2, 9)
    resets = mx.arange(9)[None] == mx.array([[4], [6]])
    for size in (0.5, 3.0):
        for block in model.blocks:
            spheres = block.mixer.spheres
            start = spheres.start / mx.linalg.norm(spheres.start, axis=0)
            spheres.start = size * start
            if size < 1:
                assert mx.array_equal(spheres.origin, spheres.start)
            else:
                np.testing.assert_allclose(np.array(spheres.origin), np.array(start), atol=1e-6)
        R = model.forward(ids, resets=resets).trace["block00/R"]
        assert mx.isfinite(R).all() and R.max() <= 1 + 1e-4
    assert R.max() > 0.99


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"coupling": True}, "model.expansion has populations with leaf"),
        ({"leaf": "hold"}, "model.expansion has populations with leaf"),
        ({"controlled": True}, "model.expansion has populations with leaf"),
        ({"field": 0.0}, "model.field divides what model.expansion reads"),
        ({"expansion": -1}, "model.expansion must be at least 0"),
        ({"dimension": 3, "wells": 2}, "model.wells is of spheres without expansion"),
        ({"dimension": 3, "sphere_field": 1.0}, "model.sphere_field is of spheres without expansion"),
    ],
)
def test_what_cannot_be_expanded_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        config(**{"expansion": 4, **keys})
