"""The Kuramoto recurrence with an expanded state: N populations a channel, driven by what channels share.

    h = B_t x_t,   k = h / sqrt(1 + kappa |h|^2),   a = exp((i omega - gamma) Delta_t)
    z_t = (a z_{t-1} + k) / (1 + kappa conj(k) a z_{t-1}),   y_t = sum over the N of Re(conj(C_t) z_t)

A channel has x and Delta of its own, each of its populations gamma, omega and kappa of its own; B and C,
complex, are shared by all channels, as in Mamba's selective scan, which this is at kappa = 0 and omega = 0. A
token then brings a few numbers per channel instead of four per population: fields, decays and impulses are
made where they are used, and of the states only those that enter a chunk are written.

k is the impulse of a field whose strength counts as asinh(sqrt(kappa) |h|) / sqrt(kappa): smooth in h and
kappa through zero, inside the disc for every h, and without the hyperbolic tangent of `mobius_scan.kick`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops import custom_function, dispatch
from kssm_mlx.ops.mobius_scan import disc_scan, flow
from kssm_mlx.ops.scan import float32, mask_resets, mask_tokens
from kssm_mlx.oscillators.mobius import Disc, act
from kssm_mlx.oscillators.planar import Planar

# Tokens whose states are in memory together in the compiled form, which computes them again backwards; the
# square root of T where that is more, so that the graph of a long sequence is bounded.
PIECE = 64


def expanded_scan_reference(
    x, dt, B, C, gamma, omega, kappa, state=None, *, resets=None, lengths=None
) -> tuple[mx.array, mx.array, mx.array]:
    """The recurrence as on paper, one token after the other. Shapes as in `expanded_scan`."""
    x, dt, B, C = float32(x, dt, B, C)
    rows, T, D = x.shape
    z = _start(state, rows, D, gamma.shape[1])
    y, power = [], []
    for t in range(T):
        start = z if resets is None else _choose(resets[:, t, None, None], Planar.zeros(z.shape), z)
        new = act(_maps(x[:, t], dt[:, t], B[:, t], gamma, omega, kappa), start)
        y.append((C[:, t, 0, None] * new.re + C[:, t, 1, None] * new.im).sum(-1))
        power.append(new.abs2.sum(-1))
        z = new if lengths is None else _choose((t < lengths)[:, None, None], new, z)
    return mx.stack(y, axis=1), mx.stack(power, axis=1), mx.stack([z.re, z.im], axis=1)


@dispatch.with_fallback
def expanded_scan(
    x: mx.array,
    dt: mx.array,
    B: mx.array,
    C: mx.array,
    gamma: mx.array,
    omega: mx.array,
    kappa: mx.array | float,
    state: mx.array | None = None,
    *,
    resets: mx.array | None = None,
    lengths: mx.array | None = None,
    impl: str = "auto",
) -> tuple[mx.array, mx.array, mx.array]:
    """Outputs and the last state, with gradients in every argument; no array has all states of all tokens.

    Shapes: x, dt [B, T, D], dt >= 0; B, C [B, T, 2, N], real and imaginary parts; gamma > 0, omega [D, N], of
        unit time and in radians; kappa >= 0, a number or [D, N]; state [B, 2, D, N], in the disc of radius
        kappa^(-1/2), zeros when None; resets [B, T] bool; lengths [B] int. gamma dt counts as 1e-6 at least.
        Returns y [B, T, D], the sum over the N of |z|^2 [B, T, D] and the state, all fp32.
    Raises: ConfigError for a negative kappa given as a number, or an `impl` that cannot run here.
    """
    if isinstance(kappa, (int, float)) and not kappa >= 0:
        raise ConfigError(f"kappa must be >= 0 (1 Kuramoto, 0 linear), got {kappa}")
    kappa = mx.broadcast_to(mx.array(kappa, mx.float32), gamma.shape)
    if kernel := dispatch.kernel("expanded_scan", impl, x):
        return kernel(x, dt, B, C, gamma, omega, kappa, state, resets=resets, lengths=lengths)
    x, dt, B, C, gamma, omega = float32(x, dt, B, C, gamma, omega)
    rows, T, D = x.shape
    z = _start(state, rows, D, gamma.shape[1])
    if resets is not None:
        resets = mask_resets(resets, lengths)
    valid = None if lengths is None else mask_tokens(lengths, T)
    tokens, rates = (x, dt, B, C), (gamma, omega, kappa)
    y, power, end = in_pieces(_piece, (z.re, z.im), (resets, valid), tokens, rates)
    return y, power, mx.stack(end, axis=1)


def in_pieces(
    piece: Callable,
    state: tuple[mx.array, ...],
    masks: tuple[mx.array | None, ...],
    tokens: tuple[mx.array, ...],
    rates: tuple[mx.array, ...],
) -> tuple[mx.array, mx.array, list[mx.array]]:
    """y and the power of all tokens and the state behind them, with few states in memory at once.

    piece(*masks, *state, *tokens, *rates) -> y, the power, *state: of a few tokens, which lie on axis 1.
    """
    T = tokens[0].shape[1]
    cuts = [*range(0, T, max(PIECE, isqrt(T)))][1:]
    # The gradient of a split is one array; that of a slice is one as long as T for every slice.
    given = [[None] * (len(cuts) + 1) if v is None else mx.split(v, cuts, axis=1) for v in masks]
    y, power, end = [], [], list(state)
    for cut in zip(*given, *(mx.split(v, cuts, axis=1) for v in tokens)):
        own = partial(piece, *cut[: len(masks)])
        run = _forgetful(own, len(state)) if cuts else own
        read, size, *end = run(*end, *cut[len(masks) :], *rates)
        y.append(read)
        power.append(size)
    return mx.concatenate(y, axis=1), mx.concatenate(power, axis=1), end


def expanded_maps(
    x: mx.array,
    dt: mx.array,
    B: mx.array,
    gamma: mx.array,
    omega: mx.array,
    kappa: mx.array,
    resets: mx.array | None = None,
    valid: mx.array | None = None,
) -> Disc:
    """What every token does to every population, as maps of the disc.

    Shapes: x, dt [B, T, D]; B [B, T, 2, N]; gamma, omega, kappa [D, N]; resets, valid [B, T] bool. Returns
        fields [B, T, D N], for `disc_scan`; they act on sqrt(kappa) z where kappa is not 1 only as z does.
    """
    maps = _maps(x, dt, B, gamma, omega, kappa)
    q, r, d = (v.map(lambda p: p.flatten(-2)) for v in maps)
    if resets is not None:  # q alone is left
        keep = (1 - resets.astype(mx.float32))[..., None]
        r, d = r * keep, d * keep
    if valid is not None:  # padding is the identity
        v = valid[..., None]
        q, r = (p.map(lambda s: mx.where(v, s, 0.0)) for p in (q, r))
        d = Planar(mx.where(v, d.re, 1.0), mx.where(v, d.im, 0.0))
    return Disc(q, r, d)


def _forgetful(function: Callable, held: int) -> Callable[..., tuple[mx.array, ...]]:
    """A checkpoint of a piece that begins when the one before it has ended, forward and backward: MLX would
    make the maps of all pieces first, and sum what they give last, with all of it in memory.

    Its first `held` arguments are the state that enters, as many of its last results the one that leaves.
    """

    def forward(*arrays):
        state, others = list(arrays[:held]), list(arrays[held:])
        results = function(*state, *mx.depends(others, state))
        sums = list(results[:-held])
        return (*sums, *mx.depends(list(results[-held:]), sums))

    @custom_function
    def piece(*arrays):
        return forward(*arrays)

    @piece.vjp
    def _(primals, cotangents, outputs):
        _, found = mx.vjp(forward, mx.depends(list(primals), list(cotangents)), list(cotangents))
        return (*mx.depends(list(found[:held]), list(found[held:])), *found[held:])

    return piece


def _piece(resets, valid, z_re, z_im, x, dt, B, C, gamma, omega, kappa) -> tuple[mx.array, ...]:
    """y, the power and the last states of a few tokens, every state in memory. Shapes: z [B, D, N]."""
    maps = expanded_maps(x, dt, B, gamma, omega, kappa, resets, valid)
    z = disc_scan(maps, Planar(z_re, z_im).map(lambda s: s.flatten(1)))
    z = z.map(lambda s: s.reshape(*x.shape, -1))
    y = (C[:, :, 0, None] * z.re + C[:, :, 1, None] * z.im).sum(-1)
    return y, z.abs2.sum(-1), z.re[:, -1], z.im[:, -1]


def _maps(x, dt, B, gamma, omega, kappa) -> Disc:
    """Shapes: x, dt [..., D]; B [..., 2, N]. Returns fields [..., D, N]."""
    h = Planar(x[..., None] * B[..., 0, None, :], x[..., None] * B[..., 1, None, :])
    k = h * mx.rsqrt(1 + kappa * h.abs2)
    a = flow(gamma * dt[..., None], omega * dt[..., None])
    return Disc(q=k, r=k.conj * a * kappa, d=a * (1 - kappa * k.abs2))


def _start(state: mx.array | None, rows: int, D: int, N: int) -> Planar:
    if state is None:
        return Planar.zeros((rows, D, N), mx.float32)
    return Planar(*(state[:, i].astype(mx.float32) for i in (0, 1)))


def _choose(where: mx.array, one: Planar, other: Planar) -> Planar:
    return Planar(mx.where(where, one.re, other.re), mx.where(where, one.im, other.im))
