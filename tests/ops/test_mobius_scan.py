"""The scan against a serial loop in complex128: values, gradients, states handed over, memory, bad input."""

import gc

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops.maps import scan
from kssm_mlx.ops.mobius_scan import disc_scan, flow, kick, mobius_scan, mobius_scan_reference
from kssm_mlx.oscillators.mobius import Disc, act, hold_leaf, log_memory
from kssm_mlx.oscillators.planar import Planar
from tests.support.compiling import compiling

SHAPES = [(1, 1, 1), (2, 2, 3), (3, 33, 5), (1, 257, 4), (2, 70, 1)]
KAPPAS = [0, 0.1, 0.5, 1]
pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 3 to 5 tokens, so that short sequences are cut, padded and scanned three levels deep."""
    monkeypatch.setattr(scan, "chunk_length", lambda T, lanes: T if T <= 4 else 3 + T % 3)


def complex128(x: Planar) -> np.ndarray:
    return np.array(x.re, np.float64) + 1j * np.array(x.im, np.float64)


def planar(z: np.ndarray, dtype=mx.float32) -> Planar:
    with mx.stream(mx.cpu):
        return Planar(mx.array(z.real, dtype), mx.array(z.imag, dtype))


def normal(seed: int, *shape: int) -> np.ndarray:
    re, im = np.random.default_rng(seed).normal(size=(2, *shape))
    return re + 1j * im


def arguments(B, T, G, field=0.5, gamma=0.05, seed=0, dtype=mx.float32):
    """a, k, z0 of random fields of size `field`, as the model makes them."""
    turn = np.random.default_rng(seed).uniform(0, 1.5, (B, T, G))
    a = np.exp(-gamma + 1j * turn)
    h = field * normal(seed + 1, B, T, G)
    k = h * np.tanh(np.abs(h)) / np.abs(h)
    z0 = 0.4 * np.tanh(normal(seed + 2, B, G).real) * np.exp(1j * seed)
    return tuple(planar(x, dtype) for x in (a, k, z0))


def serial(a, k, z, kappa=1.0):
    """The recurrence as on paper. Shapes: [B, T, G]; z [B, G]."""
    states = []
    for t in range(k.shape[1]):
        w = a[:, t] * z
        z = (w + k[:, t]) / (1 + kappa * k[:, t].conj() * w)
        states.append(z)
    return np.stack(states, 1)


def holds(B, T, G, kappa=1.0, seed=0):
    lam = -np.random.default_rng(seed).uniform(0.01, 0.3, G) + 0.7j
    tau = np.random.default_rng(seed + 1).uniform(0.2, 2, (B, T, G))
    return hold_leaf(lam, 0.5 * normal(seed + 2, B, T, G), tau, kappa)


def serial_maps(maps: Disc, z):
    states = []
    for t in range(maps.q.shape[1]):
        z = act(Disc(*(x[:, t] for x in maps)), z)
        states.append(z)
    return np.stack(states, 1)


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_serial_loop(shape, kappa, short_chunks):
    a, k, z0 = arguments(*shape)
    expected = serial(*map(complex128, (a, k, z0)), kappa)
    np.testing.assert_allclose(complex128(mobius_scan(a, k, z0, kappa)), expected, atol=2e-6)
    np.testing.assert_allclose(complex128(mobius_scan_reference(a, k, z0, kappa)), expected, atol=2e-6)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_hold_is_the_serial_loop(shape, kappa, short_chunks):
    maps, z0 = holds(*shape, kappa), 0.3 * np.exp(1j * np.ones((shape[0], shape[2])))
    z = disc_scan(Disc(*map(planar, maps)), planar(z0))
    np.testing.assert_allclose(complex128(z), serial_maps(maps, z0), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 63, 64, 65, 257, 1025])
def test_its_own_chunks_too(T):
    a, k, z0 = arguments(1, T, 2)
    expected = serial(*map(complex128, (a, k, z0)))
    np.testing.assert_allclose(complex128(mobius_scan(a, k, z0)), expected, atol=2e-6)


def test_float64_agrees_to_rounding(short_chunks):
    with mx.stream(mx.cpu):
        a, k, z0 = arguments(2, 40, 3, dtype=mx.float64)
        z = mobius_scan(a, k, z0)
        assert z.dtype == mx.float64
        np.testing.assert_allclose(complex128(z), serial(*map(complex128, (a, k, z0))), atol=1e-13)


@pytest.mark.parametrize("field, gamma", [(0.1, 0.05), (0.7, 0.05), (2, 0.05), (7, 0.05), (0.1, 0), (0.7, 0)])
def test_no_worse_than_twice_the_serial_loop_in_fp32(field, gamma):
    """At gamma = 0 both lose digits to the conditioning of the maps themselves."""
    a, k, z0 = arguments(2, 1024, 64, field, gamma)
    truth = serial(*map(complex128, (a, k, z0)))
    error, loop = (
        np.abs(complex128(f(a, k, z0)) - truth).max() for f in (mobius_scan, mobius_scan_reference)
    )
    assert error <= 2.5 * loop + 1e-6


def test_without_curvature_it_is_the_linear_scan_bit_for_bit(short_chunks):
    a, k, z0 = arguments(2, 33, 3)
    linear, curved = mobius_scan(a, k, z0, 0), mobius_scan(a, k, z0, mx.array(0.0))
    assert mx.array_equal(linear.re, curved.re) and mx.array_equal(linear.im, curved.im)


def test_no_start_is_the_incoherent_state():
    a, k, _ = arguments(2, 9, 3)
    zero = Planar.zeros((2, 3))
    assert mx.array_equal(mobius_scan(a, k).re, mobius_scan(a, k, zero).re)
    maps = Disc(*map(planar, holds(2, 9, 3)))
    assert mx.array_equal(disc_scan(maps).im, disc_scan(maps, zero).im)


# --- extremes -------------------------------------------------------------------------------------------


def test_finite_for_any_field_and_decay():
    """Fields along one line without decay once met 0/0; R may pass 1 by what rounding does at its edge. Each
    row of the batch has a field, a decay and, or not, one line that all of it lies on.
    """
    fields, decays = (0.0, 1.0, 7.0, 100.0, 1e10, 1e18), (0.0, 1e-8, 100.0, 1e10)
    rows = [(field, gamma, line) for field in fields for gamma in decays for line in (True, False)]
    field, gamma, line = (np.array(x)[:, None, None] for x in zip(*rows))
    h = field * normal(0, len(rows), 512, 32)
    h = np.where(line, h.real, h)
    turn = np.broadcast_to(np.where(line, 0.0, 0.3), h.shape)
    a = flow(*(mx.array(x, mx.float32) for x in (np.broadcast_to(gamma, h.shape), turn)))
    inputs = [a.re, a.im, *(mx.array(x, mx.float32) for x in (h.real, h.imag))]

    def sizes(a_re, a_im, h_re, h_im):
        return mobius_scan(Planar(a_re, a_im), kick(Planar(h_re, h_im))).abs2.max((1, 2))

    found, gradients = mx.vjp(sizes, inputs, [mx.ones(len(rows))])
    sound = [found[0] <= 1.2, *(mx.isfinite(g).flatten(1).all(1) for g in gradients)]
    assert [row for row, *fine in zip(rows, *(x.tolist() for x in sound)) if not all(fine)] == []


def test_kick_stays_in_the_disc_and_is_smooth_through_zero():
    h = planar(np.array([0, 1e-20, 1e-4, 0.3, 3, 30]) * np.exp(0.7j))
    k = complex128(kick(h))
    np.testing.assert_allclose(np.abs(k), np.tanh(np.abs(complex128(h))), rtol=2e-6)
    slope = mx.grad(lambda x: kick(Planar(x, mx.zeros_like(x))).re.sum())(mx.array([0.0, 1e-10]))
    np.testing.assert_allclose(np.array(slope), 1, atol=1e-6)


def test_flow_is_free_evolution_and_never_quite_frictionless():
    a = complex128(flow(mx.array([0.0, 0.3, 5.0]), mx.array([1.0, -2.0, 100.0])))
    np.testing.assert_allclose(a, np.exp([1j, -0.3 - 2j, -5 + 100j]), atol=2e-6)
    assert np.abs(a[0]) < 1


@pytest.mark.parametrize("call", [kick, lambda h, kappa: mobius_scan(h, h, None, kappa)])
def test_negative_curvature_is_refused(call):
    h = Planar.zeros((1, 1, 1))
    with pytest.raises(ConfigError, match=r"kappa must be >= 0 .*got -0\.5.*sphere"):
        call(h, -0.5)


def test_bf16_inputs_have_an_fp32_state():
    a, k, z0 = arguments(2, 33, 3)
    low = tuple(x.map(lambda p: p.astype(mx.bfloat16)) for x in (a, k, z0))
    z = mobius_scan(*low)
    assert z.dtype == mx.float32
    np.testing.assert_allclose(complex128(z), complex128(mobius_scan(a, k, z0)), atol=0.05)
    same = mobius_scan(*(x.map(lambda p: p.astype(mx.float32)) for x in low))
    assert mx.array_equal(z.re, same.re)


# --- gradients ------------------------------------------------------------------------------------------


def flat(*pairs: Planar) -> list[mx.array]:
    return [part for pair in pairs for part in (pair.re, pair.im)]


def pairs(parts) -> list[Planar]:
    return [Planar(*parts[i : i + 2]) for i in range(0, len(parts), 2)]


def loss(op):
    """A scalar of all states that is not holomorphic, as a function of flat arrays and perhaps kappa."""

    def value(*parts, kappa=None):
        z = op(*pairs(parts)) if kappa is None else op(*pairs(parts), kappa)
        return (mx.sin(3 * z.re) * z.im + z.abs2).sum()

    return value


def difference(f, parts: list[np.ndarray], ways: list[np.ndarray]) -> float:
    """Central difference of f along `ways`, in float64."""
    up, down = (f(*(x + s * 1e-6 * w for x, w in zip(parts, ways))) for s in (1, -1))
    return (up - down) / 2e-6


def value_of(z: np.ndarray) -> float:
    return float((np.sin(3 * z.real) * z.imag + np.abs(z) ** 2).sum())


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("T", [1, 2, 33])
def test_kick_gradient_is_the_float64_difference(T, kappa, short_chunks):
    """In float64 through the op against differences of the numpy loop: rel. 1e-7, primal by primal."""
    with mx.stream(mx.cpu):
        parts = flat(*arguments(2, T, 3, dtype=mx.float64))
        inputs = (*parts, mx.array(kappa, mx.float64))
        gradient = mx.grad(lambda *p: loss(mobius_scan)(*p[:-1], kappa=p[-1]), argnums=tuple(range(7)))
        gradients = [np.array(g) for g in gradient(*inputs)]
    wide = [np.array(x) for x in inputs]
    assert [g.shape for g in gradients] == [x.shape for x in wide]

    def oracle(ar, ai, kr, ki, zr, zi, kappa):
        return value_of(serial(ar + 1j * ai, kr + 1j * ki, zr + 1j * zi, kappa))

    for i, g in enumerate(gradients):
        ways = [np.zeros_like(x) for x in wide]
        ways[i] = np.random.default_rng(i).normal(size=wide[i].shape)
        expected = difference(oracle, wide, ways)
        assert (g * ways[i]).sum() == pytest.approx(expected, rel=1e-7, abs=1e-7 * np.abs(g).sum())


@pytest.mark.parametrize("T", [1, 2, 33])
def test_hold_gradient_is_the_float64_difference(T, short_chunks):
    maps, z0 = holds(2, T, 3), 0.3 * normal(9, 2, 3)
    with mx.stream(mx.cpu):
        inputs = flat(*(planar(x, mx.float64) for x in (*maps, z0)))
        op = loss(lambda q, r, d, z0: disc_scan(Disc(q, r, d), z0))
        gradients = [np.array(g) for g in mx.grad(op, argnums=tuple(range(8)))(*inputs)]
    wide = [np.array(x) for x in inputs]
    assert [g.shape for g in gradients] == [x.shape for x in wide]

    def oracle(qr, qi, rr, ri, dr, di, zr, zi):
        return value_of(serial_maps(Disc(qr + 1j * qi, rr + 1j * ri, dr + 1j * di), zr + 1j * zi))

    for i, g in enumerate(gradients):
        ways = [np.zeros_like(x) for x in wide]
        ways[i] = np.random.default_rng(i).normal(size=wide[i].shape)
        expected = difference(oracle, wide, ways)
        assert (g * ways[i]).sum() == pytest.approx(expected, rel=1e-7, abs=1e-7 * np.abs(g).sum())


@pytest.mark.parametrize("kappa", KAPPAS)
def test_fp32_gradient_is_autodiff_through_the_loop(kappa, short_chunks):
    inputs = (*flat(*arguments(2, 33, 3)), mx.array(float(kappa)))
    ours, autodiff = (
        mx.grad(lambda *p, op=op: loss(op)(*p[:-1], kappa=p[-1]), argnums=tuple(range(7)))(*inputs)
        for op in (mobius_scan, mobius_scan_reference)
    )
    for one, other in zip(ours, autodiff, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=2e-5 * mx.abs(other).max().item())


def test_the_number_zero_has_the_gradients_of_the_array_zero(short_chunks):
    inputs = flat(*arguments(2, 33, 3))
    number, array = (
        mx.grad(lambda *p, c=c: loss(mobius_scan)(*p, kappa=c), argnums=tuple(range(6)))(*inputs)
        for c in (0, mx.array(0.0))
    )
    for one, other in zip(number, array, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * mx.abs(other).max().item())


@pytest.mark.parametrize("field, gamma", [(0.1, 0.02), (0.5, 0.05), (1.0, 0.001)])
def test_memory_depends_on_the_order_parameter_alone(field, gamma):
    """The theorem: |dz_T/dz_s| = prod |a| (1 - R_t^2) / (1 - |a|^2 R_{t-1}^2), measured through the op.

    The state is holomorphic in z_s, so the cotangents 1 and i each give the whole derivative, per lane.
    """
    with mx.stream(mx.cpu):
        a, k, z0 = arguments(3, 40, 7, field, gamma, dtype=mx.float64)
        R = np.abs(complex128(mobius_scan(a, k, z0)))
        R = np.concatenate([np.abs(complex128(z0))[:, None], R], axis=1)
        expected = np.exp(log_memory(R[:, :-1], R[:, 1:], np.float64(gamma)).sum(axis=1))

        def last(re, im):
            z = mobius_scan(a, k, Planar(re, im))
            return [z.re[:, -1], z.im[:, -1]]

        one, zero = mx.ones_like(z0.re), mx.zeros_like(z0.re)
        for cotangent in ([one, zero], [zero, one]):
            _, (re, im) = mx.vjp(last, [z0.re, z0.im], cotangent)
            np.testing.assert_allclose(np.hypot(re, im), expected, rtol=1e-9)


# --- state, memory, determinism -------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 32, 33, 50, 69])
def test_cut_anywhere_and_hand_the_state_over(cut):
    a, k, z0 = arguments(2, 70, 3)
    whole = complex128(mobius_scan(a, k, z0))
    first = mobius_scan(a.map(lambda x: x[:, :cut]), k.map(lambda x: x[:, :cut]), z0)
    state = first.map(lambda x: x[:, -1])
    rest = mobius_scan(a.map(lambda x: x[:, cut:]), k.map(lambda x: x[:, cut:]), state)
    np.testing.assert_allclose(np.concatenate([complex128(first), complex128(rest)], 1), whole, atol=2e-6)


def test_many_steps_are_few_kernels(monkeypatch):
    """65,536 tokens of one narrow lane group: the graph grows as the square root, not as T."""
    calls = []

    def counted(make):
        def compiled(form):
            f = make(form)
            return lambda *p: calls.append(1) or f(*p)

        return compiled

    for name in ("_compiled_step", "_compiled_compose"):
        monkeypatch.setattr(scan, name, counted(getattr(scan, name)))
    a, k, _ = arguments(1, 65536, 1)
    mobius_scan(a, k)
    assert len(calls) <= 4 * 65536**0.5


def peak_of_gradients(parts):
    """Bytes above what is held."""
    gc.collect()
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    value, gradients = mx.value_and_grad(loss(mobius_scan), argnums=(0, 1, 2, 3))(*parts)
    mx.eval(value, gradients)
    assert mx.isfinite(value).item() and all(mx.isfinite(g).all().item() for g in gradients)
    return mx.get_peak_memory() - held


def test_memory_is_linear_in_time(repeatable_peak):
    peaks = {}
    for T in (16384, 65536):
        parts = flat(*arguments(1, T, 4)[:2])
        mx.eval(parts)
        peaks[T] = peak_of_gradients(parts)
    assert peaks[65536] <= 4.5 * peaks[16384]


def test_same_bits_twice():
    inputs = flat(*arguments(2, 70, 3))
    run = mx.value_and_grad(loss(mobius_scan), argnums=tuple(range(6)))
    (v1, g1), (v2, g2) = run(*inputs), run(*inputs)
    assert v1.item() == v2.item() and all(mx.array_equal(x, y) for x, y in zip(g1, g2))


@pytest.mark.slow
def test_compiled_is_eager(short_chunks):
    inputs = flat(*arguments(2, 5, 3))
    run = mx.value_and_grad(loss(mobius_scan), argnums=tuple(range(6)))
    value, gradients = run(*inputs)
    with compiling(True):
        compiled, compiled_gradients = mx.compile(run)(*inputs)
    assert compiled.item() == pytest.approx(value.item(), rel=1e-5)
    for one, other in zip(compiled_gradients, gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * mx.abs(other).max().item())
