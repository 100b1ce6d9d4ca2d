"""The selective scan of Mamba (S6): a diagonal state-space model whose step and projections see the token.

    h_t = decay(Δ_t A) h_{t-1} + Δ_t B_t x_t,    y_t = C_t h_t        (one state h [N] for each channel)

Source: Gu & Dao 2023, "Mamba", algorithm 2, with the simplified discretisation of its section 3.6.
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import custom_function, dispatch
from kssm_mlx.ops.elementary import exp
from kssm_mlx.ops.kernels import in_time
from kssm_mlx.ops.scan import float32, mask_resets, mask_tokens, shift_states, tree_split

# Tokens between two states that the backward pass starts again from; their states fit a core's cache.
CHUNK = 16
# Tokens that one graph goes through, some 15 nodes for each; more are cut into parts side by side.
LONGEST = 4096


def selective_scan_reference(x, dt, A, B, C, state=None, *, resets=None, lengths=None):
    """The recurrence as on paper. Shapes as in `selective_scan`."""
    x, dt, A, B, C = float32(x, dt, A, B, C)
    batch, T, _ = x.shape
    h = mx.zeros((batch, *A.shape)) if state is None else state
    y = []
    for t in range(T):
        start = h if resets is None else mx.where(resets[:, t, None, None], 0, h)
        decay = mx.exp(dt[:, t, :, None] * A)
        new = decay * start + (dt[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        h = new if lengths is None else mx.where((t < lengths)[:, None, None], new, h)
        y.append((new * C[:, t, None, :]).sum(-1))
    return mx.stack(y, axis=1), h


@dispatch.with_fallback
def selective_scan(
    x: mx.array,
    dt: mx.array,
    A: mx.array,
    B: mx.array,
    C: mx.array,
    state: mx.array | None = None,
    *,
    resets: mx.array | None = None,
    lengths: mx.array | None = None,
    impl: str = "auto",
) -> tuple[mx.array, mx.array]:
    """The scan with everything but the recurrence itself hoisted out of the loop over time.

    Shapes: x, dt [B, T, D] with dt > 0; A [D, N] < 0; B, C [B, T, N]; state [B, D, N], zeros when None;
        resets [B, T] bool; lengths [B] int. Returns y [B, T, D] and the state [B, D, N], both fp32.
    """
    if kernel := dispatch.kernel("selective_scan", impl, x):
        return kernel(x, dt, A, B, C, state, resets=resets, lengths=lengths)
    x, dt, A, B, C = float32(x, dt, A, B, C)
    T, batch = x.shape[1], x.shape[0]
    if T == 1:
        return _one_token(x, dt, A, B, C, state, resets, lengths)
    # Padding lasts no time: its decay is 1 and it adds nothing.
    if lengths is not None:
        dt = mx.where(mask_tokens(lengths, T)[..., None], dt, 0)
    # Before Δ is stretched for resets: the token itself is read as it is.
    dtx = dt * x
    if resets is not None:
        # Δ so long that nothing is left: exp(ΔA) is exactly 0.
        dt = mx.where(mask_resets(resets, lengths)[..., None], 1e30, dt)
    h0 = mx.zeros((batch, *A.shape)) if state is None else state.astype(mx.float32)
    y, h = (_rows if T <= LONGEST else _rows_in_parts)(h0.swapaxes(1, 2), A.T, dt, dtx, B, C)
    return y, h.swapaxes(1, 2)


def _rows(h0, A, dt, dtx, B, C) -> tuple[mx.array, mx.array]:
    """Shapes: h0 [B, N, D]; A [N, D]; the others [B, T, ...]. Returns y [B, T, D] and the last state."""
    T = dt.shape[1]
    y, h, _ = _scan(h0, A, *(_time_first(v, min(CHUNK, T)) for v in (dt, dtx, B, C)))
    return y[:T].swapaxes(0, 1), h


def _rows_in_parts(h, A, *moving: mx.array) -> tuple[mx.array, mx.array]:
    """The same with a graph that grows no more: parts of rows as rows, each first from nothing.

    A part maps h to decay h + own.
    """
    T = moving[0].shape[1]
    n = -(-T // LONGEST)
    parts = [in_time.cut(v, n) for v in moving]
    own = _rows(mx.zeros((parts[0].shape[0], *h.shape[1:])), A, *parts)[1]
    decay, entering = exp(parts[0].sum(axis=1)[:, None] * A), []
    for factor, end in zip(in_time.rows(decay, n), in_time.rows(own, n)):
        entering.append(h)
        h = factor * h + end
    return in_time.join(_rows(in_time.batch(entering), A, *parts)[0], n, T), h


def _one_token(x, dt, A, B, C, state, resets, lengths):
    """The recurrence once, in few kernels: what a step of generation is made of."""
    h = mx.zeros((x.shape[0], *A.shape)) if state is None else state.astype(mx.float32)
    start = h if resets is None else mx.where(resets[..., None], 0, h)
    dt, dtx = dt[:, 0, :, None], (dt * x)[:, 0, :, None]
    new = exp(dt * A) * start + dtx * B
    y = (new @ C[:, 0, :, None]).squeeze(-1)[:, None]
    return y, new if lengths is None else mx.where((lengths > 0)[:, None, None], new, h)


def _time_first(v: mx.array, L: int) -> mx.array:
    """[B, T, ...] -> [T', B, ...], T' the next multiple of L: Δ = 0 leaves the state alone."""
    T = v.shape[1]
    return mx.pad(mx.contiguous(v.swapaxes(0, 1)), [(0, -T % L), (0, 0), (0, 0)])


@custom_function
def _scan(h0, A, dt, dtx, B, C):
    """All chunks, one after the other.

    Shapes: h0 [B, N, D]; A [N, D]; dt, dtx [T, B, D]; B, C [T, B, N]. Returns y [T, B, D], the last state and
        the states that enter the chunks, [T / CHUNK, B, N, D], from which the backward pass starts again.
    """
    h, y, entering = h0, [], []
    for span in _spans(dt.shape[0]):
        entering.append(h)
        _, states = _states(h, A, *_wait_for(h, dt[span], dtx[span]), B[span])
        y.append((C[span][:, :, None] @ states).squeeze(2))
        (h,) = _wait_for(y[-1], states[-1])
    return mx.concatenate(y), h, mx.stack(entering)


@_scan.vjp
def _scan_vjp(primals, cotangents, outputs):
    _, A, dt, dtx, B, C = primals
    dy, carry, _ = cotangents
    entering, dA, pieces = outputs[2], mx.zeros_like(A), []
    for c, span in reversed([*enumerate(_spans(dt.shape[0]))]):
        moving = _wait_for(carry, entering[c], dt[span], dtx[span], dy[span])
        carry, own, *parts = _chunk_gradients(carry, A, B[span], C[span], *moving)
        dA = dA + own
        pieces.append(parts)
        (carry,) = _wait_for([dA, *parts], carry)
    return carry, dA, *(mx.concatenate([*parts][::-1]) for parts in zip(*pieces))


@mx.compile
def _chunk_gradients(carry, A, B, C, h, dt, dtx, dy):
    """The chunk's states again, then the adjoint g_t = C_t dy_t + a_{t+1} g_{t+1} back through it."""
    a, states = _states(h, A, dt, dtx, B)
    g = []
    for a_t, injected in zip(tree_split(a)[::-1], tree_split(_product(C[..., None], dy[:, :, None]))[::-1]):
        g.append(injected + carry)
        carry = a_t * g[-1]
    g, past = mx.concatenate(g[::-1]), shift_states(states, h)
    slope = g * a * past  # dL / d(Δ_t A)
    return (
        carry[0],
        _product(slope, dt[:, :, None]).sum(axis=(0, 1)),
        _product(slope, A[None, None]).sum(axis=2),
        (B[:, :, None] @ g).squeeze(2),
        (g @ dtx[..., None]).squeeze(3),
        (states @ dy[..., None]).squeeze(3),
    )


@mx.compile
def _states(h, A, dt, dtx, B):
    """Decays and states of one chunk, token by token. Shapes: [T, B, N, D]."""
    a = exp(_product(dt[:, :, None], A[None, None]))
    h, states = h[None], []
    for a_t, b_t in zip(tree_split(a), tree_split(_product(B[..., None], dtx[:, :, None]))):
        h = a_t * h + b_t
        states.append(h)
    return a, mx.concatenate(states)


def _product(x: mx.array, y: mx.array) -> mx.array:
    """x y, broadcast, kept out of the kernels around it, which with a broadcast inside would not vectorise.

    A product alone is not fused, and neither are views with stride 0. Shapes: four axes each.
    """
    shape = [max(pair) for pair in zip(x.shape, y.shape)]
    return _seal_kernel(_view(x, shape) * _view(y, shape))


def _seal_kernel(x: mx.array) -> mx.array:
    """x, where mx.compile must begin a new kernel.

    It fuses from the last operation backwards, 11 deep. A constant that falls just outside becomes an array
    of stride 0, and a kernel with such an input does not vectorise: three times slower. Views are not fused.
    """
    return x.view(mx.int32).view(mx.float32)


def _view(x: mx.array, shape: list[int]) -> mx.array:
    """x broadcast to `shape`."""
    strides, step = [], 1
    for n in x.shape[::-1]:
        strides.append(0 if n == 1 else step)
        step *= n
    return x if list(x.shape) == shape else mx.as_strided(mx.contiguous(x), shape, strides[::-1])


def _wait_for(done, *arrays: mx.array) -> list[mx.array]:
    """`arrays`, not before `done`: MLX would start on all chunks together, and hold every one in memory."""
    return mx.depends(list(arrays), done if isinstance(done, list) else [done])


def _spans(T: int) -> list[slice]:
    L = min(CHUNK, T)
    return [slice(t, t + L) for t in range(0, T, L)]
