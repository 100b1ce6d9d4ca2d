"""The recurrences alone, in every form: forward and backward over T; some beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx

from kssm_mlx.bench.measure import Case, Contender, arrays
from kssm_mlx.ops import dispatch, gpu
from kssm_mlx.ops.ball_scan import ball_scan, rotor
from kssm_mlx.ops.ball_scan import kick as ball_kick
from kssm_mlx.ops.ball_wells import ball_wells
from kssm_mlx.ops.conv import causal_conv
from kssm_mlx.ops.expanded_ball import expanded_ball
from kssm_mlx.ops.expanded_scan import expanded_scan
from kssm_mlx.ops.kuramoto_bank import kuramoto_bank
from kssm_mlx.ops.mobius_scan import flow, kick, mobius_scan
from kssm_mlx.ops.selective_scan import selective_scan
from kssm_mlx.ops.ssd import ssd
from kssm_mlx.ops.wkv4 import wkv4
from kssm_mlx.ops.wkv7 import wkv7
from kssm_mlx.oscillators.planar import Planar

# Small enough that T = 65,536 fits: one row of one narrow model.
B, D, N, HEADS, K = 1, 64, 16, 1, 64
EQUAL_T, LANES = 512, 4096
WIDTHS = 256, 258

# The compiled form of a long sequence takes seconds where a kernel takes milliseconds, that of the bank
# minutes: where steps do not compose its graph has some 300 nodes a token.
LONGEST_COMPILED, LONGEST_SERIAL, SERIAL = 4096, 512, ("kuramoto_bank", "ball_wells")


def recurrence_cases(lengths: tuple[int, ...]) -> Iterator[Case]:
    for name in OPS:
        for T in lengths:
            yield Case(
                f"ops/{name}/T{T}",
                f"{name}: forward and backward, B {B}, T {T}",
                B * T,
                "tokens",
                partial(_forms, name, T),
                {"op": name, "T": T},
            )
    yield from _equal_lanes()


def _equal_lanes() -> Iterator[Case]:
    """Two recurrences over as many states each: the Möbius scan beside Mamba's and, with as many real numbers
    of state, the expanded one, and beside that its form on spheres; the sphere beside the disc, wells beside
    none. N states of Mamba share their inputs.
    """
    mobius = partial(_mobius, EQUAL_T, LANES)
    ball, wells = partial(_ball, EQUAL_T, LANES), partial(_ball_and_wells, EQUAL_T, LANES)
    mamba = partial(_mamba, EQUAL_T, LANES // N)
    expanded = partial(_bench_expanded_scan, EQUAL_T, LANES // N)
    spheres = partial(_bench_expanded_ball, EQUAL_T, LANES // N)
    for name, beside in (
        (("mobius_scan", _mobius_scan, mobius), ("selective_scan", _selective_scan, mamba)),
        (("expanded_scan", _expanded_scan, expanded), ("selective_scan", _selective_scan, mamba)),
        (("expanded_ball", _expanded_ball, spheres), ("expanded_scan", _expanded_scan, expanded)),
        (("ball_scan", _ball_scan, ball), ("mobius_scan", _mobius_scan, mobius)),
        (("ball_wells", _ball_wells, wells), ("ball_scan", _ball_scan, ball)),
    ):
        sides = {which: (function, draw) for which, function, draw in (beside, name)}
        yield Case(
            f"ops/{name[0]}/equal",
            f"{name[0]} beside {beside[0]}: forward and backward, {LANES} lanes, B 1, T {EQUAL_T}",
            EQUAL_T * LANES,
            "states",
            partial(_both_ways_each, sides),
            {"bytes": partial(_bytes_a_state, sides)},
        )
    # Registers of a CPU hold 8 or 16 channels; a width that is no multiple of them should not cost more.
    widths = {f"{D} channels": (_selective_scan, partial(_mamba, EQUAL_T, D)) for D in WIDTHS}
    yield Case(
        "ops/selective_scan/width",
        f"selective_scan, {WIDTHS[1]} channels beside {WIDTHS[0]}: forward and backward, B {B}, T {EQUAL_T}",
        B * EQUAL_T,
        "tokens",
        partial(_both_ways_each, widths),
    )


Sides = dict[str, tuple[Callable, Callable]]


def _both_ways_each(sides: Sides) -> dict[str, Contender]:
    return {name: both_ways(function, draw()) for name, (function, draw) in sides.items()}


def _bytes_a_state(sides: Sides) -> dict[str, float]:
    return {n: least_bytes(f, draw()) / (EQUAL_T * LANES) for n, (f, draw) in sides.items()}


def least_bytes(function: Callable, inputs: tuple[mx.array, ...]) -> int:
    """What no form can do without: forward inputs read and outputs written, backward inputs and cotangents
    read and gradients written.
    """
    return 3 * sum(x.nbytes for x in inputs) + 2 * sum(y.nbytes for y in function(*inputs))


def _forms(op: str, T: int) -> dict[str, Contender]:
    """Every form this device can run; last, under its own name, the one that `auto` takes."""
    function, draw = OPS[op]
    inputs = draw(T)
    kernel = dispatch.kernel(op, "auto") is not None
    longest, found = LONGEST_SERIAL if op in SERIAL else LONGEST_COMPILED, {}
    if not kernel or longest >= T:
        found["compiled"] = both_ways(partial(function, impl="compiled"), inputs)
    if gpu.dialect():
        found["kernel"] = both_ways(partial(function, impl="kernel"), inputs)
    return found if kernel or "kernel" not in found else {n: found[n] for n in ("kernel", "compiled")}


def both_ways(function: Callable, inputs: tuple[mx.array, ...]) -> Contender:
    """Outputs, and the gradient in every argument for given cotangents: the operation and nothing else."""
    pulls = [_normal(9 + i, *y.shape) for i, y in enumerate(function(*inputs))]
    mx.eval(inputs, pulls)
    n = len(inputs)
    return arrays(mx.compile(lambda *args: mx.vjp(function, [*args[:n]], [*args[n:]])), *inputs, *pulls)


def _normal(seed: int, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def _selective_scan(*args: mx.array, impl: str = "auto") -> tuple[mx.array, ...]:
    return selective_scan(*args, impl=impl)[:1]


def _mamba(T: int, D: int = D) -> tuple[mx.array, ...]:
    decays = -mx.broadcast_to(mx.arange(1, N + 1, dtype=mx.float32), (D, N))
    return (
        _normal(0, B, T, D),
        0.1 * mx.abs(_normal(1, B, T, D)),
        decays,
        _normal(2, B, T, N),
        _normal(3, B, T, N),
    )


def _ssd(*args: mx.array, impl: str = "auto") -> tuple[mx.array, ...]:
    return ssd(*args, impl=impl)[:1]


def _mamba2(T: int) -> tuple[mx.array, ...]:
    steps = 0.1 * mx.abs(_normal(1, B, T, HEADS))
    sources = _normal(2, B, T, 1, K), _normal(3, B, T, 1, K)
    return _normal(0, B, T, HEADS, D), steps, -mx.ones((HEADS,)), *sources


def _wkv4(*args: mx.array, impl: str = "auto") -> tuple[mx.array, ...]:
    return wkv4(*args, impl=impl)[:1]


def _rwkv4(T: int) -> tuple[mx.array, ...]:
    return -mx.exp(_normal(0, D)), _normal(1, D), _normal(2, B, T, D), _normal(3, B, T, D)


def _wkv7(*args: mx.array, impl: str = "auto") -> tuple[mx.array, ...]:
    return wkv7(*args, impl=impl)[:1]


def _rwkv7(T: int) -> tuple[mx.array, ...]:
    draw = [_normal(i, B, T, HEADS, K) for i in range(6)]
    kappa = draw[4] / mx.linalg.norm(draw[4], axis=-1, keepdims=True)
    return draw[0], -0.6 * mx.sigmoid(draw[1]), draw[2], draw[3], -kappa, kappa * mx.sigmoid(draw[5])


def _mobius_scan(a_re, a_im, k_re, k_im, *, impl: str = "auto") -> tuple[mx.array, ...]:
    z = mobius_scan(Planar(a_re, a_im), Planar(k_re, k_im), impl=impl)
    return z.re, z.im


def _mobius(T: int, G: int = D) -> tuple[mx.array, ...]:
    a = flow(0.1 * mx.abs(_normal(0, B, T, G)), _normal(1, B, T, G))
    k = kick(Planar(_normal(2, B, T, G), _normal(3, B, T, G)) * 0.2)
    return a.re, a.im, k.re, k.im


def _expanded_scan(*args: mx.array, impl: str = "auto") -> tuple[mx.array, ...]:
    return expanded_scan(*args, impl=impl)[:1]


def _bench_expanded_scan(T: int, D: int = D) -> tuple[mx.array, ...]:
    """N / 2 complex states a channel: as many real numbers as Mamba's N."""
    shared = [_normal(i, B, T, 2, N // 2) for i in (2, 3)]
    rates = [mx.ones((D, N // 2)), _normal(4, D, N // 2), mx.ones((D, N // 2))]
    return _normal(0, B, T, D), 0.1 * mx.abs(_normal(1, B, T, D)), *shared, *rates


def _expanded_ball(*args: mx.array, impl: str = "auto") -> tuple[mx.array, ...]:
    return expanded_ball(*args, impl=impl)[:1]


def _bench_expanded_ball(T: int, D: int = D) -> tuple[mx.array, ...]:
    """(N - 1) / 3 populations a channel, 15 real numbers of state beside Mamba's 16."""
    n = (N - 1) // 3
    shared = [_normal(i, B, T, 3, n) for i in (2, 3, 4)]
    rates = [mx.ones((D, n)), _normal(5, 3, D, n), mx.ones((D, n))]
    return _normal(0, B, T, D), 0.1 * mx.abs(_normal(1, B, T, D)), *shared, *rates


def _ball_scan(rotors, kicks, *, impl: str = "auto") -> tuple[mx.array, ...]:
    return (ball_scan(rotors, kicks, impl=impl),)


def _ball(T: int, G: int = D) -> tuple[mx.array, ...]:
    rotors = rotor(0.1 * mx.abs(_normal(0, B, T, G)), _normal(1, B, T, 3, G))
    return rotors, ball_kick(0.2 * _normal(2, B, T, 3, G))


def _ball_wells(points, sharpness, rotors, kicks, pull, *, impl: str = "auto") -> tuple[mx.array, ...]:
    return (ball_wells(rotors, kicks, pull, points, sharpness, impl=impl),)


def _ball_and_wells(T: int, G: int = D) -> tuple[mx.array, ...]:
    """8 wells a lane."""
    points = _normal(3, 8, 3, G)
    points = 0.9 * points / mx.linalg.norm(points, axis=1, keepdims=True)
    return points, mx.full((G,), 8.0), *_ball(T, G), mx.full((B, T, G), 0.05)


def _conv(weight, bias, x, *, impl: str = "auto") -> tuple[mx.array, ...]:
    return causal_conv(x, weight, bias, impl=impl)[:1]


def _taps(T: int) -> tuple[mx.array, ...]:
    return _normal(0, D, 4), _normal(1, D), _normal(2, B, T, D)


def _bank(theta, omega, K, h_re, h_im, tau, *, impl: str = "auto") -> tuple[mx.array, ...]:
    Z, theta = kuramoto_bank(theta, omega, K, Planar(h_re, h_im), tau, impl=impl)
    return Z.re, Z.im, theta


def _groups(T: int) -> tuple[mx.array, ...]:
    """D / 4 groups of N oscillators."""
    G = D // 4
    drive = [_normal(i, B, T, G) for i in (2, 3)]
    return _normal(0, B, G, N), _normal(1, G, N), mx.ones((B, T, G)), *drive, mx.full((B, T, G), 0.05)


OPS = {
    "selective_scan": (_selective_scan, _mamba),
    "ssd": (_ssd, _mamba2),
    "wkv4": (_wkv4, _rwkv4),
    "wkv7": (_wkv7, _rwkv7),
    "mobius_scan": (_mobius_scan, _mobius),
    "expanded_scan": (_expanded_scan, _bench_expanded_scan),
    "expanded_ball": (_expanded_ball, _bench_expanded_ball),
    "ball_scan": (_ball_scan, _ball),
    "ball_wells": (_ball_wells, _ball_and_wells),
    "kuramoto_bank": (_bank, _groups),
    "conv": (_conv, _taps),
}
