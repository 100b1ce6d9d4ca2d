"""The linear recurrence h_t = a_t h_{t-1} + b_t, which Mamba, SSD and RWKV-4 share, and its matrix form.

MLX has no scan, and the backward pass of a plain loop over T zero-fills T slices, O(T²). Here the loop is
short (all that does not depend on the state is computed before it, for all tokens at once) and the gradient
is the same recurrence run backwards, so nothing is differentiated through a slice. Time is the first axis.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from kssm_mlx.ops import custom_function


def linear_scan_reference(a: mx.array, b: mx.array, h0: mx.array) -> mx.array:
    """h_t = a_t h_{t-1} + b_t as on paper. Shapes: a, b [T, ...]; h0 [...] -> h [T, ...]."""
    h, states = h0, []
    for t in range(b.shape[0]):
        h = a[t] * h + b[t]
        states.append(h)
    return mx.stack(states)


@custom_function
def linear_scan(a: mx.array, b: mx.array, h0: mx.array) -> mx.array:
    """All states of h_t = a_t h_{t-1} + b_t, with a gradient that costs one more scan.

    a_t = 0 forgets everything before t (a reset); a_t = 1, b_t = 0 leaves the state alone (padding).

    Shapes: a, b [T, ...]; h0 [...]; all of the same trailing shape. Returns h [T, ...].
    """
    return _linear(a, b, h0)


@linear_scan.vjp
def _(primals, cotangent, h):
    a, _, h0 = primals
    # The adjoint of a linear recurrence is the same recurrence backwards in time.
    adjoint = linear_scan(_factors_after(a)[::-1], cotangent[::-1], mx.zeros_like(h0))[::-1]
    return adjoint * shift_states(h, h0), adjoint, a[0] * adjoint[0]


@custom_function
def matrix_scan(P: mx.array, Q: mx.array, S0: mx.array) -> mx.array:
    """All states of S_t = S_{t-1} P_t + Q_t, with a gradient that costs one more scan.

    Shapes: P [T, ..., K, K]; Q [T, ..., V, K]; S0 [..., V, K]. Returns S [T, ..., V, K].
    """
    return _matrix(P, Q, S0)


@matrix_scan.vjp
def _(primals, cotangent, S):
    P, _, S0 = primals
    transposed = P.swapaxes(-1, -2)
    adjoint = matrix_scan(_factors_after(transposed)[::-1], cotangent[::-1], mx.zeros_like(S0))[::-1]
    return shift_states(S, S0).swapaxes(-1, -2) @ adjoint, adjoint, adjoint[0] @ transposed[0]


def max_plus_scan(w: mx.array, k: mx.array, m0: mx.array) -> mx.array:
    """All states of m_t = max(m_{t-1} + w_t, k_t), a stabiliser: no gradient.

    Shapes: w, k [T, ...]; m0 [...]. Returns m [T, ...].
    """
    return _max_plus(*map(mx.stop_gradient, (w, k, m0)))


# Lanes below which one step of a loop costs its dispatch, not its arithmetic (measured on CPUs); and steps of
# which a graph is not to have more, whatever the lanes.
FEW_LANES, MANY_STEPS = 16384, 1024


def _recurrence(times, plus, a: mx.array, b: mx.array, h0: mx.array) -> mx.array:
    """h_t = a_t h_{t-1} + b_t for any product and sum that distribute, in 3 sqrt(T) steps for few lanes or
    many tokens.

    Chunks run side by side from nothing; then their ends, one after the other; then each state gets what
    entered its chunk.
    """
    T = b.shape[0]
    L = T if h0.size >= FEW_LANES and T <= MANY_STEPS else max(1, round(T**0.5))
    # Chunks of so few tokens would cost more steps than they save.
    if T <= 8 or T == L:
        return mx.concatenate(_scan_serially(times, plus, tree_split(a), tree_split(b), h0[None]))
    decays, adds = _side_by_side(a, L), _side_by_side(b, L)
    local, decay = [adds[0]], [decays[0]]
    for a_t, b_t in zip(decays[1:], adds[1:]):
        local.append(plus(times(a_t, local[-1]), b_t))
        decay.append(times(a_t, decay[-1]))
    ends = mx.concatenate(
        _scan_serially(times, plus, tree_split(decay[-1][0]), tree_split(local[-1][0]), h0[None])
    )
    entering = shift_states(ends, h0)[None]
    h = mx.concatenate([plus(times(d, entering), own) for d, own in zip(decay, local)])
    return h.swapaxes(0, 1).reshape(-1, *h0.shape)[:T]


def _scan_serially(times, plus, a, b, h) -> list[mx.array]:
    states = []
    for a_t, b_t in zip(a, b):
        h = plus(times(a_t, h), b_t)
        states.append(h)
    return states


def _side_by_side(x: mx.array, L: int) -> list[mx.array]:
    """L arrays [1, C, ...]: the first tokens of all chunks, the second ones, ... Shapes: x [T, ...]."""
    x = mx.pad(x, [(0, -x.shape[0] % L)] + [(0, 0)] * (x.ndim - 1))
    return tree_split(mx.contiguous(x.reshape(-1, L, *x.shape[1:]).swapaxes(0, 1)))


_linear = mx.compile(partial(_recurrence, mx.multiply, mx.add))
_max_plus = mx.compile(partial(_recurrence, mx.add, mx.maximum))
_matrix = mx.compile(partial(_recurrence, lambda P, S: S @ P, mx.add))


def tree_split(x: mx.array) -> list[mx.array]:
    """x[0:1], x[1:2], ... by splits into eight: `mx.split` into more than ten becomes as many slices."""
    n = x.shape[0]
    if n <= 8:
        return list(mx.split(x, n)) if n > 1 else [x]
    cuts = [8 ** _digits(n) * i for i in range(1, -(-n // 8 ** _digits(n)))]
    return [piece for part in mx.split(x, cuts) for piece in tree_split(part)]


def _digits(n: int) -> int:
    """The largest d with 8^d < n."""
    d = 0
    while 8 ** (d + 1) < n:
        d += 1
    return d


def shift_states(h: mx.array, h0: mx.array) -> mx.array:
    """The state that each step starts from: h0, h_1, ..., h_{T-1}. Shapes: h [T, ...]; h0 [...]."""
    return mx.concatenate([h0[None], h[:-1]])


def _factors_after(a: mx.array) -> mx.array:
    """The factor that each step is multiplied by next: a_2, ..., a_T, 0."""
    return mx.concatenate([a[1:], mx.zeros_like(a[:1])])


# ---------------------------------------------------------------------------------------------------------
# What every recurrence here does with its arguments.


def float32(*arrays: mx.array) -> list[mx.array]:
    """States and decays live in fp32 whatever the weights' dtype."""
    return [x.astype(mx.float32) for x in arrays]


def mask_tokens(lengths: mx.array, T: int) -> mx.array:
    """True where a right-padded row still has tokens. Shapes: lengths [B] -> [B, T]."""
    return mx.arange(T) < lengths[:, None]


def mask_resets(resets: mx.array, lengths: mx.array | None) -> mx.array:
    """`resets` without those in the padding, where nothing happens. Shapes: [B, T] bool."""
    return resets if lengths is None else resets & mask_tokens(lengths, resets.shape[1])


def in_chunks(x: mx.array, L: int) -> mx.array:
    """Cut time into chunks of L, the last one padded with zeros. Shapes: [B, T, ...] -> [C, B, ..., L, ...].

    Heads come before time, ready for matmuls: [B, T] -> [C, B, 1, L] and [B, T, H, ...] -> [C, B, H, L, ...].
    """
    B, T = x.shape[:2]
    x = mx.pad(x, [(0, 0), (0, -T % L)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(B, -1, L, *(x.shape[2:] or (1,)))
    return x.transpose(1, 0, 3, 2, *range(4, x.ndim))


def from_chunks(y: mx.array, T: int) -> mx.array:
    """The inverse of `in_chunks` for T tokens. Shapes: [C, B, H, L, ...] -> [B, T, H, ...]."""
    y = y.transpose(1, 0, 3, 2, *range(4, y.ndim))
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :T]


def documents(resets: mx.array | None, L: int) -> tuple[mx.array, mx.array, mx.array]:
    """What resets cut inside chunks of L tokens. Shapes: resets [..., L] bool.

    Returns causal [..., L, L], True where source j <= i is of the document of i; entered [..., L], True where
    the state that enters the chunk is still there; leaves [..., L], True for tokens of the document that
    leaves it.
    """
    causal = mx.arange(L)[:, None] >= mx.arange(L)
    if resets is None:
        return causal, mx.array(True), mx.array(True)
    number = mx.cumsum(resets.astype(mx.int32), axis=-1)
    same = number[..., :, None] == number[..., None, :]
    return same & causal, number == 0, number == number[..., -1:]
