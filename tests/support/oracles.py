"""Each recurrence in float64: one token on paper, and from it the states, the outputs and every gradient.

A lane is what runs through time alone: a channel, a population, a row of a head's state. The derivative of a
token is its complex step, f(x + ih) = f(x) + ih f'(x) with h too small to round; all tokens and lanes side by
side, one input at a time. The chain rule then walks back in time. Nothing of kssm_mlx takes part.

Source: Squire & Trapp 1998, "Using complex variables to estimate derivatives of real functions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

STEP = 1e-100
BLOCK = 64  # tokens side by side: what is computed of them stays in the processor's cache


class Oracle(NamedTuple):
    """lanes(arrays) -> (state [L, S], shared [L, P], tokens [T, L, I]), by picking elements and nothing else;
    token(state, shared, token) -> (state, y [L, Y]); end(state) -> what the last state stands for [L, E].
    Arrays are those of `dispatch.case`, with B = 1.
    """

    lanes: Callable
    token: Callable
    end: Callable = lambda state: state


class Found(NamedTuple):
    """Shapes: y [T, L, Y]; end [L, E]; gradients and sizes as the arrays.

    sizes: what errors of the gradients are measured against. Of tokens, the largest over time; of a state,
    the largest of its lane; of what is shared in time, the sum of the terms without their signs.
    """

    y: np.ndarray
    end: np.ndarray
    gradients: list[np.ndarray]
    sizes: list[np.ndarray]


def solve(oracle: Oracle, arrays: list[np.ndarray], pull_y: np.ndarray, pull_end: np.ndarray) -> Found:
    """Outputs, and the gradients of sum(pull_y y) + sum(pull_end end). Shapes: the pulls as y and end."""
    return solve_together(oracle, [arrays], [(pull_y, pull_end)])[0]


def solve_together(oracle: Oracle, cases: list[list[np.ndarray]], pulls: list[tuple]) -> list[Found]:
    """`solve` of each case with its pulls (of y and end), side by side: lanes do not meet, and most of a
    token's cost is not that of its lanes. Every case has as many tokens.
    """
    lanes = [oracle.lanes(arrays) for arrays in cases]
    state, shared = (np.concatenate([own[i] for own in lanes]) for i in (0, 1))
    tokens = np.concatenate([own[2] for own in lanes], 1)
    pull_y, pull_end = (np.concatenate([own[i] for own in pulls], 1 - i) for i in (0, 1))
    y, end, *gradients = _walk(oracle, state, shared, tokens, pull_y, pull_end)
    cuts = np.cumsum([len(own[0]) for own in lanes])[:-1]
    split = zip(*(np.split(x, cuts, axis) for x, axis in zip((y, end, *gradients), (1, 0, 0, 1, 1))))
    return [Found(y, end, *_gathered(oracle, arrays, *own)) for arrays, (y, end, *own) in zip(cases, split)]


def _walk(oracle: Oracle, state, shared, tokens, pull_y, pull_end) -> tuple[np.ndarray, ...]:
    """y, end, and the gradients in the first state and, token by token, in what is shared and in tokens."""
    before, y = [], []
    for token in tokens:
        before.append(state)
        state, out = oracle.token(state, shared, token)
        y.append(out)
    before = np.stack(before)
    ((of_end,),) = _slopes(lambda state: (oracle.end(state),), state)
    adjoint = _pulled(pull_end, of_end)
    g_shared, g_tokens = (np.empty((len(tokens), *x.shape[-2:])) for x in (shared, tokens))
    for begin in reversed(range(0, len(tokens), BLOCK)):
        here = slice(begin, begin + BLOCK)
        adjoint, g_shared[here], g_tokens[here] = _walk_back(
            oracle.token, before[here], shared, tokens[here], pull_y[here], adjoint
        )
    return np.stack(y), oracle.end(state), adjoint, g_shared, g_tokens


def _walk_back(token: Callable, before, shared, tokens, pull_y, adjoint) -> tuple[np.ndarray, ...]:
    """The gradients in the state before these tokens, and token by token in what is shared and in themselves,
    from that in the state after them.
    """
    own = _slopes(token, before, np.broadcast_to(shared, (len(tokens), *shared.shape)), tokens)
    after = np.empty_like(before)
    of_state, from_y = own[0][0], _pulled(pull_y, own[0][1])
    for t in reversed(range(len(tokens))):
        after[t] = adjoint
        adjoint = _pulled(adjoint, of_state[t]) + from_y[t]
    return adjoint, *(_pulled(after, of_states) + _pulled(pull_y, of_y) for of_states, of_y in own[1:])


def _pulled(pull: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Shapes: pull [..., O], slopes [..., O, I] -> [..., I]."""
    return (pull[..., None, :] @ slopes)[..., 0, :]


def _slopes(function: Callable, *given: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """For each input the slopes of every output. Shapes: given [..., I], outputs [..., O] -> [..., O, I]."""
    found = []
    for i, x in enumerate(given):
        slopes = [np.empty((*out.shape, x.shape[-1])) for out in function(*given)]
        for j in range(x.shape[-1]):
            stepped = x.astype(np.complex128)
            stepped[..., j] += 1j * STEP
            for slope, out in zip(slopes, function(*given[:i], stepped, *given[i + 1 :])):
                slope[..., j] = out.imag / STEP
        found.append(tuple(slopes))
    return found


def _gathered(oracle: Oracle, arrays, state, shared, tokens) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Every element's gradient is the sum over the places it was picked for, and so is its size.

    Shapes: state [L, S]; shared [T, L, P]; tokens [T, L, I].
    """
    ends = np.cumsum([x.size for x in arrays])
    numbers = [np.arange(end - x.size, end).reshape(x.shape) for x, end in zip(arrays, ends)]
    places = np.concatenate([x.ravel() for x in oracle.lanes(numbers)])

    def sums(*per_place: np.ndarray) -> list[np.ndarray]:
        flat = np.bincount(places, np.concatenate([x.ravel() for x in per_place]), ends[-1])
        return [part.reshape(x.shape) for part, x in zip(np.split(flat, ends[:-1]), arrays)]

    largest = np.broadcast_to(np.abs(state).max(-1, keepdims=True), state.shape)
    over_time = np.broadcast_to(np.abs(tokens).max(0), tokens.shape)
    return sums(state, shared.sum(0), tokens), sums(largest, np.abs(shared).sum(0), over_time)


# ---------------------------------------------------------------------------------------------------------
# The recurrences.


def _side(*parts: np.ndarray) -> np.ndarray:
    """Side by side on the last axis, broadcast on those before it."""
    shape = np.broadcast_shapes(*(x.shape[:-1] for x in parts))
    return np.concatenate([np.broadcast_to(x, (*shape, x.shape[-1])) for x in parts], -1)


def _mobius_lanes(arrays):
    *moving, z_re, z_im, kappa = arrays
    shared = np.broadcast_to(kappa.reshape(1, 1), (z_re.shape[1], 1))
    return np.stack([z_re[0], z_im[0]], -1), shared, np.stack([x[0] for x in moving], -1)


def _mobius_token(z, kappa, moving):
    kappa, (a_re, a_im, k_re, k_im) = kappa[..., 0], np.moveaxis(moving, -1, 0)
    w_re = a_re * z[..., 0] - a_im * z[..., 1]
    w_im = a_re * z[..., 1] + a_im * z[..., 0]
    below_re, below_im = 1 + kappa * (k_re * w_re + k_im * w_im), kappa * (k_re * w_im - k_im * w_re)
    size, over_re, over_im = below_re**2 + below_im**2, w_re + k_re, w_im + k_im
    z_re = (over_re * below_re + over_im * below_im) / size
    z = np.stack([z_re, (over_im * below_re - over_re * below_im) / size], -1)
    return z, z


def _expanded_lanes(arrays, shared=2):
    """A lane is a channel with its N populations; channels share what a token brings beside x and dt."""
    x, dt, *others, state = arrays
    tokens = [v[0].reshape(v.shape[1], 1, -1) for v in others[:shared]]
    rates = [np.moveaxis(v, -2, 0).reshape(x.shape[2], -1) for v in others[shared:]]
    state = np.moveaxis(state[0], 1, 0).reshape(x.shape[2], -1)
    return state, np.concatenate(rates, -1), _side(x[0, ..., None], dt[0, ..., None], *tokens)


def _expanded_token(z, rates, moving):
    x, dt = moving[..., :1], moving[..., 1:2]
    B_re, B_im, C_re, C_im = np.split(moving[..., 2:], 4, -1)
    (gamma, omega, kappa), (z_re, z_im) = np.split(rates, 3, -1), np.split(z, 2, -1)
    h_re, h_im = x * B_re, x * B_im
    small = (1 + kappa * (h_re**2 + h_im**2)) ** -0.5
    lost, angle = np.where((gamma * dt).real < 1e-6, 1e-6, gamma * dt), omega * dt
    a_re, a_im = np.exp(-lost) * np.cos(angle), np.exp(-lost) * np.sin(angle)
    moved = np.concatenate([z_re, z_im, a_re, a_im, small * h_re, small * h_im], -1)
    moved = np.stack(np.split(moved, 6, -1), -1)
    z, _ = _mobius_token(moved[..., :2], kappa[..., None], moved[..., 2:])
    y = (C_re * z[..., 0] + C_im * z[..., 1]).sum(-1)
    power = (z**2).sum((-1, -2))
    return np.concatenate([z[..., 0], z[..., 1]], -1), np.stack([y, power], -1)


def _ball_lanes(arrays):
    """Before the state and kappa come what is read per token, then what lanes share, if anything."""
    p, k, a0, kappa = arrays
    shared = np.broadcast_to(kappa.reshape(1, 1), (a0.shape[-1], 1))
    return a0[0].T, shared, np.concatenate([p[0], k[0]], 1).swapaxes(1, 2)


def _ball_token(a, kappa, moving):
    s, u, k = moving[..., :1], moving[..., 1:4], moving[..., 4:7]
    w = (s * s - _dot(u, u)) * a + 2 * _dot(u, a) * u + 2 * s * np.cross(u, a)
    over = (1 + 2 * kappa * _dot(k, w) + kappa * _dot(w, w)) * k + (1 - kappa * _dot(k, k)) * w
    a = over / (1 + 2 * kappa * _dot(k, w) + kappa**2 * _dot(k, k) * _dot(w, w))
    return a, a


def _spheres_lanes(arrays):
    """As of the expanded scan; where documents begin moves no token of one."""
    *others, start, state = arrays
    state, rates, tokens = _expanded_lanes([*others, state], shared=3)
    return state, np.concatenate([rates, np.moveaxis(start, 1, 0).reshape(len(rates), -1)], -1), tokens


def _spheres_token(state, rates, moving):
    """Rodrigues' rotation, and the translation of the ball in vectors."""
    x, dt = (moving[..., i, None, None] for i in (0, 1))
    a, B, C, spin = (_vectors(v) for v in (state, *np.split(moving[..., 2:], 3, -1)))
    N = a.shape[-2]
    gamma, omega, kappa = (rates[..., i * N : j * N] for i, j in ((0, 1), (1, 4), (4, 5)))
    gamma, kappa = gamma[..., None] * dt, kappa[..., None]
    turn, h = dt * (_vectors(omega) + spin), x * B
    angle = np.sqrt(_dot(turn, turn))
    n, lost = turn / angle, np.exp(-np.where(gamma.real < 1e-6, 1e-6, gamma))
    turned = np.cos(angle) * a + np.sin(angle) * np.cross(n, a) + (1 - np.cos(angle)) * _dot(n, a) * n
    k = h * (1 + kappa * _dot(h, h)) ** -0.5
    shape = np.broadcast_shapes(turned.shape, k.shape)
    still = np.zeros((*shape[:-1], 1))
    moves = np.concatenate([still + 1, still, still, still, np.broadcast_to(k, shape)], -1)
    a, _ = _ball_token(np.broadcast_to(lost * turned, shape), kappa, moves)
    y = np.stack([(C * a).sum((-1, -2)), (a * a).sum((-1, -2))], -1)
    return np.moveaxis(a, -1, -2).reshape(*a.shape[:-2], -1), y


def _vectors(x):
    """Components one after the other as vectors. Shapes: [..., 3 N] -> [..., N, 3]."""
    return np.moveaxis(x.reshape(*x.shape[:-1], 3, -1), -2, -1)


def _dot(x, y):
    return (x * y).sum(-1, keepdims=True)


def _wells_lanes(arrays):
    p, k, pull, points, sharpness, a0, kappa = arrays
    M, _, G = points.shape
    shared = [np.broadcast_to(kappa.reshape(1, 1), (G, 1)), sharpness[:, None], points.reshape(3 * M, G).T]
    tokens = np.concatenate([p[0], k[0], pull[0][:, None]], 1).swapaxes(1, 2)
    return a0[0].T, np.concatenate(shared, -1), tokens


def _wells_token(a, shared, moving):
    y, _ = _ball_token(a, shared[..., :1], moving)
    points = shared[..., 2:].reshape(*shared.shape[:-1], -1, 3)
    score = shared[..., 1:2] * (points * y[..., None, :]).sum(-1)
    share = np.exp(score - score.real.max(-1, keepdims=True))
    share = share / share.sum(-1, keepdims=True)
    a = y + moving[..., 7:8] * ((share[..., None] * points).sum(-2) - y)
    return a, a


def _ssm_token(h, A, moving):
    N = h.shape[-1]
    x, dt, B, C = moving[..., :1], moving[..., 1:2], moving[..., 2 : 2 + N], moving[..., 2 + N :]
    h = np.exp(dt * A) * h + dt * x * B
    return h, (h * C).sum(-1, keepdims=True)


def _selective_lanes(arrays):
    x, dt, B, C, A, h = arrays
    return h[0], A, _side(x[0, ..., None], dt[0, ..., None], B[0, :, None], C[0, :, None])


def _ssd_lanes(arrays):
    """A lane is a channel of a head; heads share A and dt among channels, groups B and C among heads."""
    x, dt, B, C, A, h = arrays
    _, T, H, P = x.shape
    B, C = (np.repeat(v[0], H // v.shape[2], axis=1)[:, :, None] for v in (B, C))
    tokens = _side(x[0, ..., None], dt[0, :, :, None, None], B, C)
    shared = np.broadcast_to(A[:, None, None], h.shape[1:])
    return *(v.reshape(H * P, -1) for v in (h[0], shared)), tokens.reshape(T, H * P, -1)


def _wkv4_lanes(arrays):
    k, v, w, u, num, den, most = arrays
    return np.stack([num[0], den[0], most[0]], -1), np.stack([w, u], -1), np.stack([k[0], v[0]], -1)


def _wkv4_token(s, shared, moving):
    """The maxima are real: any stabiliser gives the same y, and the same slopes."""
    num, den, most = np.moveaxis(s, -1, 0)
    (w, u), (k, v) = np.moveaxis(shared, -1, 0), np.moveaxis(moving, -1, 0)
    q = np.maximum(most.real, (u + k).real)
    old, now = np.exp(most - q), np.exp(u + k - q)
    y = (old * num + now * v) / (old * den + now)
    m = np.maximum((most + w).real, k.real)
    old, now = np.exp(most + w - m), np.exp(k - m)
    return np.stack([old * num + now * v, old * den + now, m], -1), y[..., None]


def _wkv4_end(s):
    """The average, and the logarithm of the sum of weights: of num, den and max only these mean something."""
    num, den, most = np.moveaxis(s, -1, 0)
    return np.stack([num / den, most + np.log(den)], -1)


def _wkv7_lanes(arrays):
    """A lane is a row of a head's state: a value of its own, and what the head's rows share."""
    r, k, a, b, v, log_w, S = arrays
    _, T, H, V = v.shape
    tokens = _side(*(x[0, :, :, None] for x in (r, k, a, b, log_w)), v[0, ..., None])
    state = S[0].reshape(H * V, -1)
    return state, state[:, :0], tokens.reshape(T, H * V, -1)


def _wkv7_token(S, _, moving):
    K = S.shape[-1]
    r, k, a, b, log_w = np.split(moving[..., : 5 * K], 5, -1)
    S = S * np.exp(log_w) + (S * a).sum(-1, keepdims=True) * b + moving[..., 5 * K :] * k
    return S, (S * r).sum(-1, keepdims=True)


def _conv_lanes(arrays):
    x, past, weight, bias = arrays
    return past[0].T, _side(weight, bias[:, None]), x[0, ..., None]


def _conv_token(past, shared, x):
    window = np.concatenate([past, x], -1)
    return window[..., 1:], (shared[..., :-1] * window).sum(-1, keepdims=True) + shared[..., -1:]


def _kuramoto_lanes(arrays):
    K, h_re, h_im, tau, theta, omega = arrays
    return theta[0], omega, np.stack([x[0] for x in (K, h_re, h_im, tau)], -1)


def _kuramoto_token(theta, omega, drive, steps=2, harmonics=3):
    K, h_re, h_im, tau = (drive[..., i : i + 1] for i in range(4))
    for _ in range(steps):
        cos, sin = np.cos(theta), np.sin(theta)
        f_re, f_im = (K / 2 * x.mean(-1, keepdims=True) + h for x, h in ((cos, h_re), (sin, h_im)))
        theta = theta + tau / steps * (omega + 2 * (f_im * cos - f_re * sin))
    powers = range(1, harmonics + 1)
    y = [f(n * theta).mean(-1) for f in (np.cos, np.sin) for n in powers]
    return theta - 2 * np.pi * np.round(theta.real / (2 * np.pi)), np.stack(y, -1)


ORACLES = {
    "mobius_scan": Oracle(_mobius_lanes, _mobius_token),
    "expanded_scan": Oracle(_expanded_lanes, _expanded_token),
    "expanded_ball": Oracle(_spheres_lanes, _spheres_token),
    "ball_scan": Oracle(_ball_lanes, _ball_token),
    "ball_wells": Oracle(_wells_lanes, _wells_token),
    "selective_scan": Oracle(_selective_lanes, _ssm_token),
    "ssd": Oracle(_ssd_lanes, _ssm_token),
    "wkv4": Oracle(_wkv4_lanes, _wkv4_token, _wkv4_end),
    "wkv7": Oracle(_wkv7_lanes, _wkv7_token),
    "conv": Oracle(_conv_lanes, _conv_token),
    "kuramoto_bank": Oracle(_kuramoto_lanes, _kuramoto_token),
}
