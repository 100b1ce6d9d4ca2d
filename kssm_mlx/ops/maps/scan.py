"""All states of z_t = M_t(z_{t-1}), in parallel over time, for maps that compose.

A sequence is cut into chunks: the maps of each chunk are composed serially, all chunks side by side; the
chunk ends are a scan of the composites, by the same rule; then each chunk runs from its own start. Composing
costs about three times a step and buys width, so it is used only where the lanes alone do not fill the
machine. Nothing is differentiated through that tree: a scan that wants gradients writes its adjoint, which is
a scan of its own, backwards.

A state is a tuple of real arrays [..., G], and so are the parameters of a step. Arrays are time-major,
[T, ..., G].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import mlx.core as mx

Arrays = tuple[mx.array, ...]


class Form(NamedTuple):
    """One kind of step.

    step(p, z) -> z; whole(p) -> the parameters of the same map in the form whose maps compose.
    identity: the values that make a step do nothing, for padding. The last `constants` parameters are
    scalars shared by all tokens and lanes: a scalar keeps the fused kernels contiguous, which an array
    broadcast over lanes does not (3x slower). general: the form that composites have; None: this one itself,
    whose compose(after, before) -> the parameters of `after o before`.
    """

    step: Callable[[Arrays, Arrays], Arrays]
    whole: Callable[[Arrays], Arrays]
    identity: tuple[float, ...]
    general: Form | None = None
    compose: Callable[[Arrays, Arrays], Arrays] | None = None
    constants: int = 0

    def split(self, p: Arrays) -> tuple[Arrays, Arrays]:
        """(what varies over tokens, the constants)."""
        n = len(p) - self.constants
        return p[:n], p[n:]


# Below this many lanes a serial step is bound by dispatch, so time is cut into chunks to widen it. Measured
# on two x86 cores; a GPU needs more width to be busy.
_BUSY_LANES = {"cpu": 16384, "gpu": 65536}
_SHORT = 32


def scan(form: Form, p: Arrays, z0: Arrays) -> Arrays:
    """States [T, ..., G] of the recurrence from z0 [..., G]; p is time-major, constants last."""
    moving, constant = form.split(p)
    T = moving[0].shape[0]
    L = chunk_length(T, z0[0].size)
    if L >= T:
        return _scan_serially(form, moving, constant, z0)
    chunked = tuple(_cut_into_chunks(x, L, fill) for x, fill in zip(moving, form.identity))
    # Composites have the general form, whatever the tokens' maps have; there are sqrt(T) of them.
    ends = scan(form.general or form, _composites(form, chunked, constant), z0)
    starts = tuple(mx.concatenate([s[None], e[:-1]]) for s, e in zip(z0, ends))
    z = _scan_serially(form, chunked, constant, starts)
    return tuple(x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:T] for x in z)


def chunk_length(T: int, lanes: int) -> int:
    """Tokens per chunk: all of T when the lanes already keep the device busy, else about sqrt(T)."""
    busy = _BUSY_LANES["gpu" if mx.default_device() == mx.gpu else "cpu"]
    if lanes >= busy or T <= _SHORT:
        return T
    return min(T, max(8, round(T**0.5)))


@cache
def _compiled_step(form: Form) -> Callable[..., Arrays]:
    @mx.compile
    def step(z: list[mx.array], *p: mx.array) -> Arrays:
        return form.step(p, tuple(z))

    return step


@cache
def _compiled_compose(form: Form) -> Callable[..., Arrays]:
    compose = (form.general or form).compose
    assert compose is not None

    @mx.compile
    def after(before: list[mx.array], *p: mx.array) -> Arrays:
        return compose(form.whole(p), tuple(before))

    return after


def _scan_serially(form: Form, moving: Arrays, constant: Arrays, z0: Arrays) -> Arrays:
    """The states one after the other; every step is one fused kernel over all lanes."""
    step, z, states = _compiled_step(form), z0, []
    for t in range(moving[0].shape[0]):
        z = step(list(z), *(x[t] for x in moving), *constant)
        states.append(z)
    return tuple(mx.stack(list(component)) for component in zip(*states))


def _composites(form: Form, chunked: Arrays, constant: Arrays) -> Arrays:
    """The map of each whole chunk, [C, ..., G] per parameter of the general form."""
    found = form.whole((*(x[0] for x in chunked), *constant))
    for t in range(1, chunked[0].shape[0]):
        found = _compiled_compose(form)(list(found), *(x[t] for x in chunked), *constant)
    return found


def _cut_into_chunks(x: mx.array, L: int, fill: float) -> mx.array:
    """[T, ..., G] -> [L, C, ..., G], time inside a chunk first; padded with steps that do nothing."""
    T = x.shape[0]
    pad = -T % L
    if pad:
        x = mx.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return mx.contiguous(x.reshape(-1, L, *x.shape[1:]).swapaxes(0, 1))


def time_major(x: mx.array) -> mx.array:
    """[B, T, ...] -> [T, B, ...], contiguous."""
    return mx.contiguous(x.swapaxes(0, 1))


def after_first(first: mx.array, rest: mx.array) -> mx.array:
    """The state before each token: first [B, ...], then all but the last of rest [B, T, ...]."""
    return mx.concatenate([first[:, None], rest[:, :-1]], axis=1)
