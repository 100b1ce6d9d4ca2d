"""The scan on the sphere against a serial loop in float64: values, gradients, states, bad input."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops.ball_scan import ball_scan, ball_scan_reference, kick, rotor
from kssm_mlx.ops.maps import scan
from kssm_mlx.ops.maps.ball import KICK, MAP
from kssm_mlx.ops.mobius_scan import flow, mobius_scan
from kssm_mlx.ops.mobius_scan import kick as planar_kick
from kssm_mlx.oscillators import ball
from kssm_mlx.oscillators.planar import Planar

SHAPES = [(1, 1, 1), (2, 2, 3), (3, 33, 5), (1, 257, 4), (2, 70, 1)]
KAPPAS = [0, 0.1, 0.5, 1]
FORMS = [ball_scan_reference, ball_scan, lambda *x: ball_scan(*x, impl="compiled")]
pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 3 to 5 tokens, so that short sequences are cut, padded and scanned three levels deep."""
    monkeypatch.setattr(scan, "chunk_length", lambda T, lanes: T if T <= 4 else 3 + T % 3)


def rotors(gamma: np.ndarray, w: np.ndarray) -> np.ndarray:
    """In float64, where MLX has sines of single precision. Shapes: gamma [..., G]; w [..., 3, G]."""
    half = np.maximum(np.sqrt((w * w).sum(-2, keepdims=True)), 1e-300) / 2
    turn = np.concatenate([np.cos(half), np.sin(half) / (2 * half) * w], -2)
    return np.exp(-gamma / 2)[..., None, :] * turn


def arguments(B, T, G, field=0.5, gamma=0.05, seed=0, kappa=1.0):
    """rotors, kicks, a0 of random fields of size `field`, float64."""
    rng = np.random.default_rng(seed)
    w, h = 1.5 * rng.normal(size=(B, T, 3, G)), field * rng.normal(size=(B, T, 3, G))
    a0 = np.tanh(rng.normal(size=(B, 3, G))) / 3
    k = np.moveaxis(ball.kick(np.moveaxis(h, -2, -1), kappa), -1, -2)
    return rotors(np.full((B, T, G), gamma), w), k, a0


def given(arrays, dtype=mx.float32) -> list[mx.array]:
    with mx.stream(mx.cpu):
        return [mx.array(x, dtype) for x in arrays]


def product(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of quaternions [4, ...]."""
    s, u = p[0] * q[0] - (p[1:] * q[1:]).sum(0), p[0] * q[1:] + q[0] * p[1:] + np.cross(p[1:], q[1:], axis=0)
    return np.concatenate([s[None], u])


def serial(p, k, a, kappa=1.0):
    """The recurrence by quaternion products and `oscillators.ball`, which shares no line with the op."""
    states, opposite = [], np.array([1.0, -1, -1, -1])[:, None]
    for t in range(k.shape[1]):
        moved = []
        for row in range(k.shape[0]):
            vector = np.concatenate([np.zeros_like(a[row, :1]), a[row]])
            w = product(product(p[row, t], vector), opposite * p[row, t])[1:]
            moved.append(ball.translate(k[row, t].T, w.T, kappa).T)
        a = np.stack(moved)
        states.append(a)
    return np.stack(states, 1)


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_serial_loop(shape, kappa, short_chunks):
    arrays = arguments(*shape, kappa=kappa)
    expected = serial(*arrays, kappa)
    for form in FORMS:
        np.testing.assert_allclose(np.array(form(*given(arrays), kappa)), expected, atol=4e-6)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 63, 64, 65, 257, 1025])
def test_its_own_chunks_too(T):
    arrays = arguments(1, T, 2)
    found = ball_scan(*given(arrays), impl="compiled")
    np.testing.assert_allclose(np.array(found), serial(*arrays), atol=4e-6)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_float64_agrees_to_rounding(kappa, short_chunks):
    arrays = arguments(2, 40, 3, kappa=kappa)
    with mx.stream(mx.cpu):
        a = ball_scan(*given(arrays, mx.float64), kappa)
        assert a.dtype == mx.float64
        np.testing.assert_allclose(np.array(a), serial(*arrays, kappa), atol=1e-13)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_in_a_plane_it_is_the_scan_of_the_disc(kappa):
    """Rotations about the third axis, kicks across it: two dimensions, to rounding."""
    rng = np.random.default_rng(1)
    B, T, G = 2, 70, 5
    gamma, turn = mx.array(rng.uniform(0.01, 0.3, (B, T, G))), mx.array(rng.normal(size=(B, T, G)))
    h = [mx.array(0.6 * rng.normal(size=(B, T, G))) for _ in range(2)]
    none = mx.zeros((B, T, G))
    z = mobius_scan(flow(gamma, turn), planar_kick(Planar(*h), kappa), None, kappa)
    turns = rotor(gamma, mx.stack([none, none, turn], 2))
    a = ball_scan(turns, kick(mx.stack([*h, none], 2), kappa), None, kappa)
    for ours, theirs in zip((a[:, :, 0], a[:, :, 1], a[:, :, 2]), (z.re, z.im, none)):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=3e-6)


def test_rotations_do_not_commute():
    """Two quarter turns about different axes, in either order: elsewhere."""
    x, z = ([np.pi / 2, 0, 0], [0, 0, np.pi / 2])
    start, still = mx.array([0.3, 0.4, 0.0])[None, :, None], mx.zeros((1, 2, 3, 1))
    ends = []
    for first, second in ((x, z), (z, x)):
        w = mx.array([first, second])[None, :, :, None]
        ends.append(ball_scan(rotor(mx.zeros((1, 2, 1)), w), still, start)[0, -1, :, 0])
    np.testing.assert_allclose(np.array(ends[0]), [0, 0.3, 0.4], atol=1e-6)
    np.testing.assert_allclose(np.array(ends[1]), [-0.4, 0, 0.3], atol=1e-6)


def test_any_map_of_the_ball_composes_as_it_acts():
    """The composite of tokens at a point, against the tokens one after the other, in float64."""
    p, k, a0 = (np.moveaxis(x, -2, 0) for x in arguments(1, 12, 6, kappa=0.7))
    with mx.stream(mx.cpu):
        kappa = mx.array(0.7, mx.float64)
        start = tuple(mx.array(x[0], mx.float64) for x in a0)
        tokens = [(*(mx.array(x[0, t], mx.float64) for x in (*p, *k)), kappa) for t in range(12)]
        a, whole = start, None
        for token in tokens:
            a = KICK.step(token, a)
            whole = KICK.whole(token) if whole is None else MAP.compose(KICK.whole(token), whole)
        found = MAP.step(whole, start)
        np.testing.assert_allclose(np.array(found), np.array(a), atol=1e-13)


def test_a_rotor_of_zero_forgets_and_of_one_does_nothing():
    p, k, a0 = given(arguments(2, 9, 3))
    p[:, 4] = 0
    a = ball_scan(p, k, a0)
    np.testing.assert_allclose(np.array(a[:, 4]), np.array(k[:, 4]), atol=1e-7)
    np.testing.assert_allclose(np.array(a[:, 4:]), np.array(ball_scan(p[:, 4:], k[:, 4:])), atol=1e-6)
    p[:, 7:], k[:, 7:] = mx.array([1.0, 0, 0, 0])[:, None], 0.0
    assert mx.array_equal(ball_scan(p, k, a0)[:, 8], ball_scan(p, k, a0)[:, 6])


def test_without_curvature_it_is_linear(short_chunks):
    p, k, a0 = given(arguments(2, 33, 3, kappa=0))
    linear, curved = (
        ball_scan(p, k, a0, 0, impl="compiled"),
        ball_scan(p, k, a0, mx.array(0.0), impl="compiled"),
    )
    np.testing.assert_allclose(np.array(linear), np.array(curved), atol=1e-6)
    np.testing.assert_allclose(np.array(ball_scan(p, 2 * k, 2 * a0, 0)), 2 * np.array(linear), atol=1e-5)


def test_no_start_is_the_incoherent_state():
    p, k, _ = given(arguments(2, 9, 3))
    assert mx.array_equal(ball_scan(p, k), ball_scan(p, k, mx.zeros((2, 3, 3))))


def test_bf16_inputs_have_an_fp32_state():
    arrays = given(arguments(2, 33, 3))
    low = [x.astype(mx.bfloat16) for x in arrays]
    a = ball_scan(*low)
    assert a.dtype == mx.float32
    np.testing.assert_allclose(np.array(a), np.array(ball_scan(*arrays)), atol=0.05)


# --- extremes -------------------------------------------------------------------------------------------


def test_finite_for_any_field_and_decay():
    """Each row of the batch has a field, a decay and, or not, one line that all of it lies on."""
    rng = np.random.default_rng(0)
    fields, decays = (0.0, 1.0, 7.0, 100.0, 1e10, 1e18), (0.0, 1e-8, 100.0, 1e10)
    rows = [(field, gamma, line) for field in fields for gamma in decays for line in (True, False)]
    field, gamma, line = (np.array(x)[:, None, None, None] for x in zip(*rows))
    h = field * rng.normal(size=(len(rows), 512, 3, 8))
    h[:, :, 1:] *= ~line
    w = np.broadcast_to(np.where(line, 0.0, 0.3), h.shape)
    inputs = [mx.array(x, mx.float32) for x in (np.broadcast_to(gamma, h.shape)[:, :, 0], w, h)]

    def sizes(gamma, w, h):
        return mx.square(ball_scan(rotor(gamma, w), kick(h))).sum(2).max((1, 2))

    found, gradients = mx.vjp(sizes, inputs, [mx.ones(len(rows))])
    sound = [found[0] <= 1.2, *(mx.isfinite(g).flatten(1).all(1) for g in gradients)]
    assert [row for row, *fine in zip(rows, *(x.tolist() for x in sound)) if not all(fine)] == []


def test_kick_stays_in_the_ball_and_is_smooth_through_zero():
    sizes = np.array([0, 1e-20, 1e-4, 0.3, 3, 30])
    h = mx.array(np.array([0.6, 0, -0.8])[:, None] * sizes, mx.float32)
    np.testing.assert_allclose(
        np.linalg.norm(np.array(kick(h), np.float64), axis=0), np.tanh(sizes), rtol=2e-6, atol=1e-30
    )
    slope = mx.grad(lambda x: kick(mx.stack([x, 0 * x, 0 * x]))[0].sum())(mx.array([0.0, 1e-10]))
    np.testing.assert_allclose(np.array(slope), 1, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-4, 0.3, 0.63, 0.64, 3.0, 100.0])
def test_rotor_turns_by_the_angle_and_its_gradient_is_smooth(angle):
    """Against Rodrigues' formula and, in the angle, central differences in float64."""
    axis, a = np.array([2.0, -1, 2]) / 3, np.array([0.1, 0.5, -0.3])

    def turned(w: np.ndarray) -> np.ndarray:
        return np.exp(-0.2) * ball.rotate(w, a)

    def ours(w: mx.array) -> mx.array:
        return ball_scan(rotor(mx.array([[[0.2]]]), w[None, None, :, None]), mx.zeros((1, 1, 3, 1)), start)

    start = mx.array(a, mx.float32)[None, :, None]
    w = angle * axis
    np.testing.assert_allclose(np.array(ours(mx.array(w, mx.float32)))[0, 0, :, 0], turned(w), atol=1e-5)
    pull = np.array([0.3, -1.0, 0.7])
    g = mx.grad(lambda w: (ours(w)[0, 0, :, 0] * mx.array(pull, mx.float32)).sum())(mx.array(w, mx.float32))
    steps = 1e-5 * np.eye(3)
    expected = [(turned(w + e) - turned(w - e)) @ pull / 2e-5 for e in steps]
    np.testing.assert_allclose(np.array(g), expected, atol=2e-5)


@pytest.mark.parametrize("call", [kick, lambda h, kappa: ball_scan(h, h, None, kappa)])
def test_negative_curvature_is_refused(call):
    with pytest.raises(ConfigError, match=r"kappa must be >= 0 .*got -0\.5"):
        call(mx.zeros((1, 1, 3, 1)), -0.5)


# --- gradients ------------------------------------------------------------------------------------------


def value_of(a: np.ndarray) -> float:
    x, y, z = np.moveaxis(a, -2, 0)
    return float((np.sin(3 * x) * y + z * z * x + np.cos(y + z)).sum())


def loss(a: mx.array) -> mx.array:
    x, y, z = (a[..., i, :] for i in range(3))
    return (mx.sin(3 * x) * y + z * z * x + mx.cos(y + z)).sum()


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("T", [1, 2, 33])
def test_gradient_is_the_float64_difference(T, kappa, short_chunks):
    """rotors, kicks, a0 and kappa, each along a random direction; the op in float64."""
    wide = [*arguments(2, T, 3, kappa=kappa), np.array(float(kappa))]
    with mx.stream(mx.cpu):
        inputs = given(wide, mx.float64)
        gradients = [
            np.array(g) for g in mx.grad(lambda *x: _wide_loss(ball_scan(*x)), argnums=(0, 1, 2, 3))(*inputs)
        ]
    assert [g.shape for g in gradients] == [x.shape for x in wide]
    for i, g in enumerate(gradients):
        way = np.random.default_rng(i).normal(size=wide[i].shape)
        ends = [serial(*(x + s * 1e-6 * way if j == i else x for j, x in enumerate(wide))) for s in (1, -1)]
        expected = (_wide_value(ends[0]) - _wide_value(ends[1])) / 2e-6
        assert (g * way).sum() == pytest.approx(expected, rel=1e-7, abs=1e-7 * np.abs(g).sum())


def _wide_loss(a: mx.array) -> mx.array:
    """Polynomials: float64 sines of MLX are of single precision."""
    x, y, z = (a[..., i, :] for i in range(3))
    return (x * x * y + z * z * x - y * z).sum()


def _wide_value(a: np.ndarray) -> float:
    x, y, z = np.moveaxis(a, -2, 0)
    return float((x * x * y + z * z * x - y * z).sum())


def test_affine_gradient_is_that_of_the_kick_without_curvature(short_chunks):
    p, k, a0 = given(arguments(2, 21, 3, kappa=0))

    def through(kappa):
        def run(p, k, a0):
            return loss(ball_scan(p, k, a0, kappa, impl="compiled"))

        return mx.grad(run, argnums=(0, 1, 2))(p, k, a0)

    for ours, theirs in zip(through(0), through(mx.array(0.0))):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=2e-5)


def test_memory_follows_from_order_alone():
    """|da_T / da_0| is the product of r (1 - |a_t|²) / (1 - r² |a_{t-1}|²) in any direction: conformal."""
    p, k, a0 = arguments(1, 4, 4)
    a = np.concatenate([a0[:, None], serial(p, k, a0)], 1)
    square, r = (a * a).sum(2), (p * p).sum(2)
    expected = np.prod(r * (1 - square[:, 1:]) / (1 - r * r * square[:, :-1]), axis=1)
    rng = np.random.default_rng(3)
    for _ in range(3):
        way = rng.normal(size=a0.shape)
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        ends = [serial(p, k, a0 + s * 1e-6 * way)[:, -1] for s in (1, -1)]
        found = np.linalg.norm((ends[0] - ends[1]) / 2e-6, axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


# --- states handed over ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 16, 69])
def test_a_state_handed_over_goes_on(cut):
    p, k, a0 = given(arguments(2, 70, 3))
    whole = ball_scan(p, k, a0)
    first = ball_scan(p[:, :cut], k[:, :cut], a0)
    rest = ball_scan(p[:, cut:], k[:, cut:], first[:, -1])
    np.testing.assert_allclose(np.array(rest), np.array(whole[:, cut:]), atol=2e-6)
