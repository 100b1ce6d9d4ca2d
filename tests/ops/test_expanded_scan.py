"""The expanded scans, of phases and on spheres: their forms against the recurrence on paper, float64, and the
scans that they are made of.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops import dispatch
from kssm_mlx.ops import expanded_scan as module
from kssm_mlx.ops.ball_scan import ball_scan
from kssm_mlx.ops.expanded_ball import expanded_ball, expanded_rotors_and_kicks
from kssm_mlx.ops.expanded_scan import expanded_maps, expanded_scan
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
OPS = ("expanded_scan", "expanded_ball")
# On paper and compiled, 1 - kappa |k|^2 is a difference, of which strong kicks leave little: in the gradient
# of kappa both are 2e-5 off float64, and the kernel, which has it as a quotient, 1e-6 (by hand).
CLOSE = {"expanded_scan": 2e-5, "expanded_ball": 1e-4}
pytestmark = pytest.mark.usefixtures("uncompiled")


def arguments(op, T, *, N=N):
    *args, state = dispatch.case(op).arguments(B, T, D, N=N)
    return args, state


def moving(op):
    case = dispatch.case(op)
    return [i < case.moving for i in range(len(case.arguments(1, 1, 1)) - 1)]


def joined(op, form):
    """Outputs and power as one, as the comparisons want them."""
    run = dispatch.case(op).form(form)

    def function(*args, **masks):
        y, power, state = run(*args, **masks)
        return mx.stack([y, power], axis=2), state

    return function


@pytest.fixture(params=OPS)
def op(request):
    return request.param


@pytest.fixture(params=["kernel", "compiled"])
def name(request, cpp):
    return request.param


@pytest.fixture
def form(op, name):
    return joined(op, name)


@pytest.fixture
def of_phases(name):
    return joined("expanded_scan", name)


@pytest.fixture
def of_spheres(name):
    return joined("expanded_ball", name)


@pytest.mark.parametrize("T", SHAPES)
@pytest.mark.parametrize("kind", MASKS)
def test_is_the_recurrence_on_paper(T, kind, op, form):
    args, state = arguments(op, T)
    assert_same_function(form, joined(op, "reference"), args, state, masks(kind, B, T), tolerance=CLOSE[op])


def test_gradients_are_those_of_float64(op, form):
    arrays = dispatch.case(op).arguments(1, 13, D, N=N)

    def run(*x):
        y, z = form(*x)
        return y[0].swapaxes(1, 2), z[0].swapaxes(0, 1).flatten(1)

    pulls = [normal(90 + i, *x.shape) for i, x in enumerate(run(*arrays))]
    values, gradients = mx.vjp(run, arrays, pulls)
    wide = [np.array(x, np.float64) for x in arrays]
    truth = solve(ORACLES[op], wide, *(np.array(p, np.float64) for p in pulls))
    np.testing.assert_allclose(np.array(values[0]), truth.y, atol=2e-5)
    np.testing.assert_allclose(np.array(values[1]), truth.end, atol=2e-5)
    for ours, theirs in zip(gradients, truth.gradients, strict=True):
        np.testing.assert_allclose(np.array(ours), theirs, atol=2e-5 * max(np.abs(theirs).max(), 1))


def test_the_oracle_is_the_central_difference(op):
    """What the gradients are held against, against float64 differences of its own values."""
    arrays = [np.array(x, np.float64) for x in dispatch.case(op).arguments(1, 6, 2, N=2)]
    rng = np.random.default_rng(0)
    pulls = rng.normal(size=(6, 2, 2)), rng.normal(size=(2, arrays[-1].shape[1] * 2))
    ways = [rng.normal(size=x.shape) for x in arrays]

    def value(step):
        found = solve(ORACLES[op], [x + step * w for x, w in zip(arrays, ways)], *pulls)
        return (found.y * pulls[0]).sum() + (found.end * pulls[1]).sum()

    gradients = solve(ORACLES[op], arrays, *pulls).gradients
    slope = sum((g * w).sum() for g, w in zip(gradients, ways))
    assert slope == pytest.approx((value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-7)


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_state_hands_over_anywhere(cut, op, form):
    assert_chunk_invariant(form, *arguments(op, 21), cut, moving(op))


def test_pieces_of_the_compiled_form_are_one_scan(op, monkeypatch):
    args, state = arguments(op, 50)
    monkeypatch.setattr(module, "PIECE", 7)
    for kind in MASKS:
        pieces, paper = (joined(op, form) for form in ("compiled", "reference"))
        assert_same_function(pieces, paper, args, state, masks(kind, B, 50), tolerance=CLOSE[op])


def test_without_curvature_and_rotation_it_is_mambas_scan(of_phases):
    """Real and imaginary parts are then two states of Mamba of the same decay."""
    T = 40
    (x, dt, write, read, gamma, _, _), _ = arguments("expanded_scan", T)
    none = mx.zeros((D, N))
    y, _ = of_phases(dt * x, dt, write, read, gamma, none, none)
    both = (v.flatten(2) for v in (write, read))
    expected, _ = selective_scan(x, dt, -mx.concatenate([gamma, gamma], -1), *both)
    np.testing.assert_allclose(np.array(y[:, :, 0]), np.array(expected), atol=2e-5)


def test_its_states_are_those_of_the_scan_of_the_disc():
    """Written out: one population per channel and state, an impulse each."""
    T = 30
    (x, dt, write, read, gamma, omega, _), _ = arguments("expanded_scan", T)
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
    (x, dt, write, read, gamma, omega, kappa), _ = arguments("expanded_scan", T)
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
def test_states_stay_in_the_disc_or_ball_for_any_field_and_decay(field, gamma, op, form):
    case = dispatch.case(op)
    x, *tokens = case.arguments(2, 300, 4)[: case.moving]
    omega = case.arguments(1, 1, 4)[case.moving + 1]
    args = [field * x, *tokens, mx.full((4, 3), gamma), mx.ones(omega.shape), mx.ones((4, 3))]
    y, z = form(*args)
    _, gradients = mx.vjp(lambda *a: form(*a), args, [mx.ones(y.shape), mx.ones(z.shape)])
    assert all(mx.isfinite(g).all() for g in gradients) and mx.isfinite(y).all()
    assert mx.square(z).sum(1).max() <= 1 + 1e-4


def test_half_precision_inputs_keep_an_fp32_state(op, form):
    args, _ = arguments(op, 9)
    y, state = form(*(x.astype(mx.bfloat16) if read else x for x, read in zip(args, moving(op))))
    assert y.dtype == state.dtype == mx.float32


def test_a_reset_leaves_exactly_nothing_of_the_state(op, form):
    args, state = arguments(op, 4)
    resets = mx.array([[False, True, False, False]] * B)
    one, other = (form(*args, s, resets=resets)[0] for s in (state, -0.5 * state))
    np.testing.assert_array_equal(np.array(one[:, 1:]), np.array(other[:, 1:]))


def peak(make) -> int:
    """Bytes that it takes beside what is held before."""
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(make())
    return mx.get_peak_memory() - held


def small(op, T, D, N):
    """Weak fields, and the bytes of all states."""
    arrays = [0.1 * x for x in dispatch.case(op).arguments(1, T, D, N=N)[:-1]]
    mx.eval(arrays)
    return arrays, T * D * N * 4 * {"expanded_scan": 2, "expanded_ball": 3}[op]


def test_memory_of_a_gradient_is_chunks_not_all_states(repeatable_peak, op, cpp):
    """All states of the scan of phases are 16 MB, and their maps and gradients several times that."""
    arrays, states = small(op, 512, 512, 8)
    run = dispatch.case(op).op
    assert peak(lambda: mx.grad(lambda *x: run(*x)[0].sum())(*arrays)) < states


def test_pieces_of_the_compiled_form_are_in_memory_one_after_the_other(repeatable_peak, op):
    """MLX would make all their maps first, and sum their gradients last; of phases 7 and 9
    times all states.
    """
    arrays, states = small(op, 1024, 64, 8)

    def run(*args):
        return dispatch.case(op).op(*args, impl="compiled")[0]

    assert peak(lambda: run(*arrays)) < states
    every = range(len(arrays))
    assert peak(lambda: mx.grad(lambda *a: run(*a).sum(), argnums=every)(*arrays)) < 3 * states


def test_negative_curvature_is_refused(op):
    case = dispatch.case(op)
    args = case.arguments(1, 2, D)[: case.moving + 2]
    with pytest.raises(ConfigError, match="kappa must be >= 0"):
        case.op(*args, -0.5)


# --- on spheres -------------------------------------------------------------------------------------------


def test_flat_spheres_are_phases(of_phases, of_spheres):
    """Fields in a plane, every rotation about the third axis, with documents and padding."""
    T = 30
    (x, dt, write, read, gamma, omega, kappa), state = arguments("expanded_scan", T)
    what = masks("resets and lengths", B, T)
    level = [mx.pad(v, [(0, 0), (0, 0), (0, 1), (0, 0)]) for v in (write, read)]
    axis = mx.pad(omega[None], [(2, 0), (0, 0), (0, 0)])
    still = mx.zeros((B, T, 3, N))
    args = [x, dt, *level, still, gamma, axis, kappa, mx.zeros((3, D, N))]
    y, a = of_spheres(*args, mx.pad(state, [(0, 0), (0, 1), (0, 0), (0, 0)]), **what)
    expected, z = of_phases(x, dt, write, read, gamma, omega, kappa, state, **what)
    valid = np.array(mx.arange(T) < what["lengths"][:, None])
    np.testing.assert_allclose(np.array(y)[valid], np.array(expected)[valid], atol=2e-5)
    np.testing.assert_allclose(np.array(a[:, :2]), np.array(z), atol=1e-5)
    assert mx.abs(a[:, 2]).max() == 0


def test_their_states_are_those_of_the_scan_of_the_ball():
    """Written out, with documents and padding, of a curvature that all share."""
    T = 30
    (x, dt, write, read, spin, gamma, omega, kappa, start), state = arguments("expanded_ball", T)
    one, what = mx.ones(kappa.shape), masks("resets and lengths", B, T)
    lengths = what["lengths"]
    valid = mx.arange(T) < lengths[:, None]
    moves = expanded_rotors_and_kicks(
        x, dt, write, spin, gamma, omega, one, start, what["resets"] & valid, valid
    )
    a = ball_scan(*moves, state.flatten(2), 1.0)
    y, power, end = expanded_ball(
        x, dt, write, read, spin, gamma, omega, 1.0, start, state, resets=what["resets"], lengths=lengths
    )
    np.testing.assert_allclose(np.array(end.flatten(2)), np.array(a[:, -1]), atol=1e-5)
    a, seen = mx.unflatten(a, -1, (D, N)), np.array(valid)
    expected = (read[:, :, :, None] * a).sum((2, 4)), (a * a).sum((2, 4))
    for ours, theirs in zip((y, power), expected, strict=True):
        np.testing.assert_allclose(np.array(ours)[seen], np.array(theirs)[seen], atol=2e-5)


def test_quarter_turns_by_hand(of_spheres):
    """One population, no field and hardly any friction: about x, then z, is not about z, then x."""
    quarter = np.pi / 2 * mx.eye(3)
    one, read = mx.ones((1, 2, 1)), mx.broadcast_to(mx.array([1.0, 2.0, 3.0])[:, None], (1, 2, 3, 1))
    ends = []
    for first, then in ((0, 2), (2, 0)):
        spin = mx.stack([quarter[first], quarter[then]])[None, :, :, None]
        still = mx.zeros((3, 1, 1))
        y, a = of_spheres(
            *(0 * one, one, 0 * read, read, spin, mx.zeros((1, 1)), still, mx.ones((1, 1))),
            mx.array([0.0, 0.5, 0.0]).reshape(3, 1, 1),
        )
        np.testing.assert_allclose(
            y[0, -1].flatten().tolist(), [(a[0, :, 0, 0] * read[0, 0, :, 0]).sum(), 0.25], atol=1e-5
        )
        ends.append(np.array(a).flatten())
    np.testing.assert_allclose(ends, [[0, 0, 0.5], [-0.5, 0, 0]], atol=2e-6)


def test_a_document_begins_where_it_is_told(of_spheres):
    """The first of a call without a state, and every other."""
    args, _ = arguments("expanded_ball", 6)
    resets = mx.array([[False, False, False, True, False, False]] * B)
    y, a = of_spheres(*args, resets=resets)
    again, end = of_spheres(*(x[:, 3:] if read else x for x, read in zip(args, moving("expanded_ball"))))
    np.testing.assert_allclose(np.array(y[:, 3:]), np.array(again), atol=1e-6)
    np.testing.assert_allclose(np.array(a), np.array(end), atol=1e-6)
    elsewhere, _ = of_spheres(*args[:-1], -args[-1])
    assert mx.abs(elsewhere[:, 0] - y[:, 0]).max() > 0.01


@pytest.mark.parametrize("angle", [0.0, 1e-4, 0.3, 0.62, 0.64, 3.0, 30.0])
def test_gradients_of_small_and_large_rotations(angle, cpp):
    """On both sides of where series take over: of the quaternion at an angle of 0.63, of its slope too."""
    case = dispatch.case("expanded_ball")
    arrays = case.arguments(1, 5, D, N=N)
    turn = arrays[4] / mx.linalg.norm(arrays[4], axis=2, keepdims=True)
    arrays[1], arrays[4], arrays[6] = (
        mx.ones((1, 5, D)),
        angle * turn,
        mx.zeros((3, D, N)) + (angle == 0) * 1e-9,
    )
    truth_at = [np.array(x, np.float64) for x in arrays]
    y, z = joined("expanded_ball", "kernel")(*arrays)
    pulls = [normal(90, *y.shape), normal(91, *z.shape)]
    _, gradients = mx.vjp(joined("expanded_ball", "kernel"), arrays, pulls)
    truth = solve(
        ORACLES["expanded_ball"],
        truth_at,
        np.array(pulls[0][0].swapaxes(1, 2), np.float64),
        np.array(pulls[1][0].swapaxes(0, 1).flatten(1), np.float64),
    )
    for ours, theirs in zip(gradients, truth.gradients, strict=True):
        np.testing.assert_allclose(np.array(ours), theirs, atol=3e-5 * max(np.abs(theirs).max(), 1))
