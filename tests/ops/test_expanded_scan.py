"""The expanded scan: its forms against the recurrence on paper, float64, Mamba's scan and the Möbius scan."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops import expanded_scan as module
from kssm_mlx.ops.expanded_scan import expanded_maps, expanded_scan, expanded_scan_reference
from kssm_mlx.ops.kernels.expanded_scan import CASE
from kssm_mlx.ops.mobius_scan import disc_scan, flow, mobius_scan
from kssm_mlx.ops.selective_scan import selective_scan
from kssm_mlx.oscillators.planar import Planar
from tests.support.oracles import ORACLES, solve
from tests.support.recurrences import (
    MASKS,
    SHAPES,
    assert_chunk_invariant,
    assert_same_function,
    masks,
    normal,
)

B, D, N = 3, 5, 4
MOVING = (True, True, True, True, False, False, False)
pytestmark = pytest.mark.usefixtures("uncompiled")


def arguments(T):
    *args, state = CASE.arguments(B, T, D, N=N)
    return args, state


def joined(form, **fixed):
    """Outputs and power as one, as the comparisons want them."""

    def op(*args, **masks):
        y, power, state = form(*args, **masks, **fixed)
        return mx.stack([y, power], axis=2), state

    return op


FORMS = {"kernel": joined(expanded_scan, impl="kernel"), "compiled": joined(expanded_scan, impl="compiled")}


@pytest.fixture(params=FORMS)
def form(request, cpp):
    return FORMS[request.param]


@pytest.mark.parametrize("T", SHAPES)
@pytest.mark.parametrize("kind", MASKS)
def test_is_the_recurrence_on_paper(T, kind, form):
    args, state = arguments(T)
    assert_same_function(form, joined(expanded_scan_reference), args, state, masks(kind, B, T))


def test_gradients_are_those_of_float64(form):
    *args, state = CASE.arguments(1, 13, D, N=N)
    arrays = [*args, state]

    def run(*x):
        y, z = form(*x)
        return y[0].swapaxes(1, 2), z[0].swapaxes(0, 1).flatten(1)

    pulls = [normal(90 + i, *x.shape) for i, x in enumerate(run(*arrays))]
    values, gradients = mx.vjp(run, arrays, pulls)
    wide = [np.array(x, np.float64) for x in arrays]
    truth = solve(ORACLES["expanded_scan"], wide, *(np.array(p, np.float64) for p in pulls))
    np.testing.assert_allclose(np.array(values[0]), truth.y, atol=2e-5)
    np.testing.assert_allclose(np.array(values[1]), truth.end, atol=2e-5)
    for ours, theirs in zip(gradients, truth.gradients, strict=True):
        np.testing.assert_allclose(np.array(ours), theirs, atol=2e-5 * max(np.abs(theirs).max(), 1))


def test_the_oracle_is_the_central_difference():
    """What the gradients are held against, against float64 differences of its own values."""
    arrays = [np.array(x, np.float64) for x in CASE.arguments(1, 6, 2, N=2)]
    rng = np.random.default_rng(0)
    pulls = rng.normal(size=(6, 2, 2)), rng.normal(size=(2, 4))
    ways = [rng.normal(size=x.shape) for x in arrays]

    def value(step):
        found = solve(ORACLES["expanded_scan"], [x + step * w for x, w in zip(arrays, ways)], *pulls)
        return (found.y * pulls[0]).sum() + (found.end * pulls[1]).sum()

    gradients = solve(ORACLES["expanded_scan"], arrays, *pulls).gradients
    slope = sum((g * w).sum() for g, w in zip(gradients, ways))
    assert slope == pytest.approx((value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-7)


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_state_hands_over_anywhere(cut, form):
    assert_chunk_invariant(form, *arguments(21), cut, MOVING)


def test_pieces_of_the_compiled_form_are_one_scan(monkeypatch):
    args, state = arguments(50)
    monkeypatch.setattr(module, "PIECE", 7)
    for kind in MASKS:
        assert_same_function(
            FORMS["compiled"], joined(expanded_scan_reference), args, state, masks(kind, B, 50)
        )


def test_without_curvature_and_rotation_it_is_mambas_scan(form):
    """Real and imaginary parts are then two states of Mamba of the same decay."""
    T = 40
    (x, dt, write, read, gamma, _, _), _ = arguments(T)
    none = mx.zeros((D, N))
    y, _ = form(dt * x, dt, write, read, gamma, none, none)
    both = (v.flatten(2) for v in (write, read))
    expected, _ = selective_scan(x, dt, -mx.concatenate([gamma, gamma], -1), *both)
    np.testing.assert_allclose(np.array(y[:, :, 0]), np.array(expected), atol=2e-5)


def test_its_states_are_those_of_the_scan_of_the_disc():
    """Written out: one population per channel and state, an impulse each."""
    T = 30
    (x, dt, write, read, gamma, omega, _), _ = arguments(T)
    h = [(x[..., None] * write[:, :, i, None]).flatten(2) for i in (0, 1)]
    k = Planar(*h) * mx.rsqrt(1 + h[0] ** 2 + h[1] ** 2)
    rates = ((dt[..., None] * v).flatten(2) for v in (gamma, omega))
    z = mobius_scan(flow(*rates), k)
    y, power, state = expanded_scan(x, dt, write, read, gamma, omega, 1.0)
    np.testing.assert_allclose(
        np.array(state.flatten(2)), np.array(mx.stack([z.re[:, -1], z.im[:, -1]], 1)), atol=1e-5
    )
    z = [v.reshape(B, T, D, N) for v in (z.re, z.im)]
    expected = sum((read[:, :, i, None] * z[i]).sum(-1) for i in (0, 1))
    np.testing.assert_allclose(np.array(y), np.array(expected), atol=2e-5)
    np.testing.assert_allclose(np.array(power), np.array((z[0] ** 2 + z[1] ** 2).sum(-1)), atol=1e-5)


def test_the_maps_are_those_of_the_scan():
    """With documents and padding."""
    T = 30
    (x, dt, write, read, gamma, omega, kappa), _ = arguments(T)
    resets, lengths = (masks("resets and lengths", B, T)[name] for name in ("resets", "lengths"))
    valid = mx.arange(T) < lengths[:, None]
    z = disc_scan(expanded_maps(x, dt, write, gamma, omega, kappa, resets & valid, valid))
    end = mx.stack([z.re[:, -1], z.im[:, -1]], 1)
    state = expanded_scan(x, dt, write, read, gamma, omega, kappa, resets=resets, lengths=lengths)[2]
    np.testing.assert_allclose(np.array(state.flatten(2)), np.array(end), atol=1e-5)


def test_by_hand():
    """One channel, one population, kappa 1: 0.6 from a field of 0.75, then half of it is left."""
    one = mx.ones((1, 2, 1))
    field, still = mx.array([0.75, 0.0]).reshape(1, 2, 1), mx.zeros((1, 1))
    unit = mx.stack([one, 0 * one], axis=2)
    y, power, state = expanded_scan(field, one, unit, 2 * unit, mx.full((1, 1), np.log(2)), still, 1.0)
    np.testing.assert_allclose(y.flatten().tolist(), [1.2, 0.6], rtol=1e-6)
    np.testing.assert_allclose(power.flatten().tolist(), [0.36, 0.09], rtol=1e-6)
    np.testing.assert_allclose(state.flatten().tolist(), [0.3, 0], atol=1e-7)


@pytest.mark.parametrize("field", [0.0, 7.0, 1e10])
@pytest.mark.parametrize("gamma", [1e-8, 1e10])
def test_states_stay_in_the_disc_for_any_field_and_decay(field, gamma, form):
    x, dt, write, read = CASE.arguments(2, 300, 4)[:4]
    rates = mx.full((4, 3), gamma), mx.ones((4, 3)), mx.ones((4, 3))
    args = [field * x, dt, write, read, *rates]
    _, gradients = mx.vjp(lambda *a: form(*a), args, [mx.ones((2, 300, 2, 4)), mx.ones((2, 2, 4, 3))])
    y, z = form(*args)
    assert all(mx.isfinite(g).all() for g in gradients) and mx.isfinite(y).all()
    assert (z[:, 0] ** 2 + z[:, 1] ** 2).max() <= 1 + 1e-4


def test_half_precision_inputs_keep_an_fp32_state(form):
    args, _ = arguments(9)
    y, state = form(*(x.astype(mx.bfloat16) if moving else x for x, moving in zip(args, MOVING)))
    assert y.dtype == state.dtype == mx.float32


def test_a_reset_leaves_exactly_nothing_of_the_state(form):
    args, state = arguments(4)
    resets = mx.array([[False, True, False, False]] * B)
    one, other = (form(*args, s, resets=resets)[0] for s in (state, -0.5 * state))
    np.testing.assert_array_equal(np.array(one[:, 1:]), np.array(other[:, 1:]))


def test_memory_of_a_gradient_is_chunks_not_all_states(repeatable_peak, cpp):
    """All states of this scan are 16 MB, and their maps and gradients several times that."""
    x, dt, write, read = (
        0.1 * normal(i, *s) for i, s in enumerate([(1, 512, 512)] * 2 + [(1, 512, 2, 8)] * 2)
    )
    rates = mx.ones((512, 8)), mx.ones((512, 8)), 1.0
    loss = lambda x: expanded_scan(x, mx.abs(dt), write, read, *rates)[0].sum()  # noqa: E731
    mx.eval(x, dt, write, read)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(loss)(x))
    assert mx.get_peak_memory() - held < 512 * 512 * 16 * 4


def test_pieces_of_the_compiled_form_are_in_memory_one_after_the_other(repeatable_peak):
    """MLX would make all their maps first, and sum their gradients last: 7 and 9 times all states."""
    T, D, N = 1024, 64, 8
    draw = [0.1 * normal(i, *s) for i, s in enumerate([(1, T, D)] * 2 + [(1, T, 2, N)] * 2)]
    rates = [mx.ones((D, N)), normal(5, D, N), mx.ones((D, N))]
    mx.eval(draw, rates)
    states = T * D * 2 * N * 4

    def peak(make) -> int:
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(make())
        return mx.get_peak_memory() - held

    def run(*args):
        return expanded_scan(*args, impl="compiled")[0]

    args = [draw[0], mx.abs(draw[1]), *draw[2:], *rates]
    mx.eval(args)
    assert peak(lambda: run(*args)) < states
    assert peak(lambda: mx.grad(lambda *a: run(*a).sum(), argnums=range(7))(*args)) < 3 * states


def test_negative_curvature_is_refused():
    args, _ = arguments(2)
    with pytest.raises(ConfigError, match="kappa must be >= 0"):
        expanded_scan(*args[:-1], -0.5)
